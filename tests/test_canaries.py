"""Seams of other packages that lmdiff leans on. If one of these fails, a package has changed:
read the named file of lmdiff before anything else is touched.
"""

import inspect
import json
import os

import accelerate
import gymnasium
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from diffusers import BlockRefinementScheduler, DiffusionPipeline
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def parameters_of(function) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_accelerate_on_cpu_ignores_the_number_of_processes():
    """lmdiff/training/launch.py: what `--cpu --num_processes 2` leaves behind (accelerate#2741)."""
    arguments = ["--cpu", "--num_processes", "2", "--mixed_precision", "no"]
    arguments += ["--dynamo_backend", "no", "--num_machines", "1", "train.py"]
    parsed = launch_command_parser().parse_args(arguments)
    parsed.use_cpu = True
    before = dict(os.environ)
    command, environment = prepare_simple_launcher_cmd_env(parsed)
    assert command[-1] == "train.py"  # no torchrun, no mpirun: one process
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "MASTER_PORT" in environment
    assert ("WORLD_SIZE" in environment) == ("WORLD_SIZE" in before)


def test_accelerate_launch_knows_our_flags():
    """lmdiff/training/launch.py."""
    flags = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    flags += " --dynamo_backend no --main_process_port 0 --module lmdiff.cli train x --resume y"
    parsed = launch_command_parser().parse_args(flags.split())
    assert parsed.multi_gpu
    assert parsed.module
    assert (parsed.num_processes, parsed.main_process_port) == (2, 0)
    assert parsed.training_script == "lmdiff.cli"
    assert parsed.training_script_args == ["train", "x", "--resume", "y"]
    assert SignalException("x", sigval=15).sigval == 15  # type: ignore[arg-type]
    assert "failures" in parameters_of(ChildFailedError)


def test_accelerator_has_what_the_loop_uses():
    """lmdiff/training/run.py, which counts accumulated batches anew by `accelerator.step`."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.step = 0
    module = accelerator.prepare_model(nn.Linear(1, 1))
    synced = []
    for _ in range(4):
        with accelerator.accumulate(module):
            synced.append(accelerator.sync_gradients)
    assert synced == [False, True, False, True]
    assert accelerator.gradient_accumulation_steps == 2
    assert accelerator.state.backend is None
    assert accelerator.distributed_type.value == "NO"


def test_an_optimizer_steps_only_when_gradients_are_synced():
    """lmdiff/training/run.py steps the prepared optimizer once, after the last micro-batch."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.step = 0
    module = accelerator.prepare_model(nn.Linear(1, 1))
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(module.parameters(), lr=1.0))
    before = module.weight.detach().clone()
    with accelerator.accumulate(module):
        accelerator.backward(module(torch.ones(1, 1)).sum())
        optimizer.step()
    assert torch.equal(module.weight, before)
    with accelerator.accumulate(module):
        accelerator.backward(module(torch.ones(1, 1)).sum())
        optimizer.step()
    # The mean of the two gradients, each 1.
    torch.testing.assert_close(module.weight, before - 1.0)


def test_save_state_still_writes_pickles(tmp_path):
    """lmdiff/training/checkpoints.py exists because of it; should this change, reconsider."""
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare_model(nn.Linear(1, 1))
    accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    accelerator.save_state(str(tmp_path / "state"))
    names = {path.suffix for path in (tmp_path / "state").iterdir()}
    assert names & {".bin", ".pkl"}, accelerate.__version__


def test_ema_model_is_plain():
    """lmdiff/training/state.py: saved tensors and one counter are all of its state."""
    module = nn.Linear(1, 1)
    ema = EMAModel(module.parameters(), decay=0.9, foreach=True)
    ema.step(module.parameters())
    assert ema.optimization_step == 1
    assert len(ema.shadow_params) == 2
    assert ema.get_decay(4) == pytest.approx((1 + 3) / (10 + 3))
    assert {"store", "restore", "copy_to"} <= set(dir(ema))


def test_discrete_schedulers_are_as_pinned():
    """lmdiff/pipelines/text_sampling.py; all of them are being rewritten (diffusers#14741)."""
    used = {"model_output", "timestep", "sample", "mask_token_id", "temperature"}
    assert used | {"threshold", "editing_threshold"} <= parameters_of(BlockRefinementScheduler.step)
    scheduler = BlockRefinementScheduler()
    scheduler.set_timesteps(2, device="cpu", block_length=4)
    logits = torch.zeros(1, 4, 3)
    logits[0, :, 1] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    masked = torch.full((1, 4), 2)
    step = scheduler.step(
        logits, 0, masked, mask_token_id=2, temperature=0.0, threshold=2.0, editing_threshold=0.0
    )
    # Half of the places a step, the surest ones first.
    assert step.prev_sample.tolist() == [[1, 1, 2, 2]]


def test_diffusers_imports_no_module_because_a_folder_names_it(tmp_path):
    """tests/test_hostile.py: an index may name classes of modules that are imported already."""
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "DiffusionPipeline", "network": ["antigravity", "x"]})
    )
    with pytest.raises((ValueError, OSError, AttributeError)):
        DiffusionPipeline.from_pretrained(tmp_path)
    import sys

    assert "antigravity" not in sys.modules


def test_transformers_reports_what_is_missing():
    """lmdiff/goals/language_model.py and denoisers/text_loading.py refuse incomplete weights."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    config = BertConfig(
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        _, report = BertForMaskedLM.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True
        )
    assert any("predictions" in name for name in report["missing_keys"])


def test_gymnasium_resets_and_steps_as_roll_outs_expect():
    """lmdiff/evaluation/rollout.py and tasks/pointmaze.py."""
    assert {"seed", "options"} <= parameters_of(gymnasium.Env.reset)

    class Counting(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {"options": options}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    env = Counting()
    _, info = env.reset(seed=3, options={"task_id": 1})
    assert info["options"] == {"task_id": 1}
    assert len(env.step(env.action_space.sample())) == 5
    # Vector environments would step over the end of an episode in this mode by default.
    assert gymnasium.vector.AutoresetMode.NEXT_STEP.value == "NextStep"
