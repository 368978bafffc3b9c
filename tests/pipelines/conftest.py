import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lmdiff.data.normalizer import Normalizer
from lmdiff.denoisers.goal_prior import GoalPrior
from lmdiff.denoisers.network import TrajectoryTransformer
from lmdiff.denoisers.processes import make_process
from lmdiff.goals.encoder import GoalEncoder
from lmdiff.goals.refusal import KnownGoals
from lmdiff.pipelines.goal_pipeline import GoalPipeline

WORDS = ["go", "to", "the", "top", "bottom", "left", "right", "corner", "bake", "a", "cake", "sing"]
STRIDE, HORIZON = 4, 6


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """The folder of a tiny random BERT with one token a word."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make_pipe(bert):
    """A small random agent for the medium maze."""

    def make(process="flow", prediction="sample", adaptation="frozen", refuses=False, prior=False):
        torch.manual_seed(0)
        encoder = GoalEncoder(bert, adaptation=adaptation)
        network = TrajectoryTransformer(
            2, 2 * STRIDE, 1, 2, 16, HORIZON, 16, 1, 2, process=process, prediction=prediction
        )
        torch.nn.init.normal_(network.head.weight, std=0.3)
        # Foreseen times around two strides, so that some plans arrive and some do not.
        mean = [5.0, -3.0, *[0.0] * 2 * STRIDE, -8.0]
        known = None
        if refuses:
            taught = [f"go to the {side}" for side in ("top", "bottom", "left", "right")]
            others = ["bake a cake", "sing a cake", "bake bake cake"]
            known = KnownGoals.fit(encoder, taught, others, taught[:2], others[:2])
        goal_prior = None
        if prior:
            goal_prior = GoalPrior(2, 16, known_states=9, width=16, readings=2, hidden=16)
            for layer in (goal_prior.of_words, goal_prior.of_sample, goal_prior.head):
                torch.nn.init.normal_(layer.weight, std=0.5)
            goal_prior.known.copy_(torch.randn(9, 2))
        return GoalPipeline(
            network=network.eval(),
            normalizer=Normalizer(mean=mean, std=[2.0, 0.5, *[0.6] * 2 * STRIDE, 6.0]),
            goal_encoder=encoder,
            goal_prior=goal_prior and goal_prior.eval(),
            scheduler=make_process(process, prediction).scheduler(),
            known_goals=known,
            stride=STRIDE,
            task="pointmaze-medium",
            agent="toy",
            evaluation={"num_inference_steps": 3, "guidance_scale": 1.0},
        )

    return make


@pytest.fixture
def pipe(make_pipe):
    return make_pipe()
