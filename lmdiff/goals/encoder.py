"""GoalEncoder: a sentence goes in, a language model's token states come out.

The goal enters a denoiser as token states through cross-attention, not as one pooled vector:
mean-pooled MiniLM hardly tells "row 3, column 5" from "row 5, column 3".
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from huggingface_hub import snapshot_download
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.goals import language_model as loading

_CACHE_BYTES = 256 * 2**20


class GoalTokens(NamedTuple):
    """A batch of goals as the language model's token states."""

    states: Tensor
    """[B, L, W] float32; zero where there is no token."""
    mask: Tensor
    """[B, L] bool; True = a real token."""


class GoalEncoder(ModelMixin, ConfigMixin):
    """Token states of goals, from any transformers text model: frozen, LoRA or fully trained.

    The language model always runs without its own dropout, also while it is trained: two
    evaluations of one goal must agree when their difference is what is learned from. Only LoRA's
    dropout follows `train()`.

    Args:
        language_model: `embedded` (MiniLM from a PyPI package), a hub name, or a local folder.
        adaptation: `frozen`, `lora` (PEFT, at PEFT's default places for the family) or `full`.
        lora_rank: rank of the LoRA matrices.
        lora_alpha: LoRA's scale times its rank.
        lora_dropout: dropout before the LoRA matrices.
        max_tokens: longer goals are refused.
        revision: of a hub model (branch, tag or commit).
        sha256: of a local (or the embedded) language model's weights. It is filled in on first
            use and checked when a saved encoder is loaded: an adapter is worthless on other
            weights.
        weights: folder of trained weights (`from_pretrained` gives it); not part of the config.

    Raises:
        UserError: the language model cannot be had, or does not fit these settings.
    """

    ignore_for_config = ["weights"]  # noqa: RUF012 (diffusers reads a plain list)

    @register_to_config
    def __init__(
        self,
        language_model: str = "embedded",
        adaptation: Literal["frozen", "lora", "full"] = "frozen",
        lora_rank: int = 8,
        lora_alpha: int = 16,
        lora_dropout: float = 0.0,
        max_tokens: int = 48,
        revision: str | None = None,
        sha256: str | None = None,
        weights: str | None = None,
    ):
        super().__init__()
        if weights is not None and adaptation == "full":
            source = str(Path(weights) / "language_model")
        else:
            source, local = loading.resolve(language_model)
            found = loading.digest(source) if local else None
            if sha256 is not None and found != sha256:
                raise UserError(
                    f"The language model at {source} is not the one this agent was trained with "
                    f"(sha256 {found}, expected {sha256}). Restore the original weights."
                )
            # A relative path would mean another folder after a `cd`.
            reference = source if local and language_model != "embedded" else language_model
            self.register_to_config(language_model=reference, sha256=found)
        text_model, self.tokenizer = loading.load(source, revision)
        self.width = loading.check_width(text_model.config, language_model, max_tokens)
        """W, the width of the token states."""
        self.text_model: nn.Module = text_model
        text_model.requires_grad_(adaptation == "full")
        if adaptation != "frozen":
            # Goals are short, and plain attention as fast as the fused one; but that one's gradient
            # in bf16 takes a CPU three times as long (0.18 instead of 0.06 s for 32 goals).
            text_model.set_attn_implementation("eager")
        if adaptation == "lora":
            self.text_model = loading.add_lora(text_model, lora_rank, lora_alpha, lora_dropout)
            if weights is not None:
                adapter = load_file(Path(weights) / "adapter_model.safetensors")
                set_peft_model_state_dict(self.text_model, adapter)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_bytes = 0
        self.eval()

    def forward(self, phrases: Sequence[str]) -> GoalTokens:
        """Token states of `phrases` (B >= 1 of them), [B, L, W]; L is that of the longest.

        Gradients flow to the language model unless it is frozen.

        Raises:
            GoalNotUnderstood: a phrase has more than `max_tokens` tokens, or is no Unicode.
        """
        if self.config["adaptation"] == "frozen":
            return self.base(phrases)
        distinct = list(dict.fromkeys(phrases))
        states = dict(zip(distinct, self._encode(distinct), strict=True))
        return self._batch([states[phrase] for phrase in phrases])

    @torch.no_grad()
    def base(self, phrases: Sequence[str]) -> GoalTokens:
        """Token states of the language model without its LoRA adapter, and without gradients.

        Of a fully trained model there is no such base; its present states are returned. States
        of a model that does not change are kept, so a repeated phrase costs nothing.
        """
        adapter = self.text_model if isinstance(self.text_model, PeftModel) else None
        keep = self.config["adaptation"] != "full"
        known = {phrase: self._cache[phrase] for phrase in phrases if phrase in self._cache}
        missing = [phrase for phrase in dict.fromkeys(phrases) if phrase not in known]
        # What is kept must not depend on the caller's autocast.
        with (
            adapter.disable_adapter() if adapter else nullcontext(),
            torch.autocast(self.device.type, enabled=False),
        ):
            # Similar lengths together: padding is computed in vain.
            missing.sort(key=len)
            for start in range(0, len(missing), 256):
                chunk = missing[start : start + 256]
                known.update(zip(chunk, self._encode(chunk), strict=True))
        if keep:
            for phrase, states in known.items():
                self._remember(phrase, states)
        return self._batch([known[phrase] for phrase in phrases])

    def null(self, batch: int) -> GoalTokens:
        """No goal, for classifier-free guidance: one zero token that the mask hides."""
        states = torch.zeros(batch, 1, self.width, device=self.device)
        return GoalTokens(states, torch.zeros(batch, 1, dtype=torch.bool, device=self.device))

    @staticmethod
    def pooled(tokens: GoalTokens) -> Tensor:
        """Mean over the real tokens, [B, W]; zero where there are none."""
        mask = tokens.mask.unsqueeze(-1)
        return (tokens.states * mask).sum(1) / mask.sum(1).clamp(min=1)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What an optimiser should be given; nothing for a frozen model."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.text_model.eval()
        for name, module in self.text_model.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def _encode(self, phrases: Sequence[str]) -> list[Tensor]:
        """Token states of each phrase, [L_i, W] float32."""
        if not phrases:
            return []
        limit = self.config["max_tokens"]
        if any("\ud800" <= character <= "\udfff" for phrase in phrases for character in phrase):
            raise GoalNotUnderstood("The goal holds half a character: it is not valid Unicode.")
        # A tokenizer needs seconds for megabytes; no token is that long.
        too_long = [phrase for phrase in phrases if len(phrase) > 64 * limit]
        rows: list[list[int]] = []
        if not too_long:
            rows = cast(list[list[int]], self.tokenizer(list(phrases))["input_ids"])
            too_long = [p for p, ids in zip(phrases, rows, strict=True) if len(ids) > limit]
        if too_long:
            shown = too_long[0] if len(too_long[0]) < 60 else too_long[0][:57] + "..."
            raise GoalNotUnderstood(
                f"The goal {shown!r} is too long: at most {limit} tokens (about "
                f"{limit * 3 // 4} words) are read. Say it shorter."
            )
        length = max(1, max(map(len, rows)))
        # Padded on the right, whatever the tokenizer likes, so that a causal model counts positions
        # from the first real token; with id 0, as not every family has a token for padding.
        # A phrase without tokens has one (thrown away below): attention needs something.
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        attention = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            attention[i, : max(1, len(row))] = 1
        output = self.text_model(
            input_ids=ids.to(self.device), attention_mask=attention.to(self.device)
        )
        states = output.last_hidden_state.float()
        return [states[i, : len(row)] for i, row in enumerate(rows)]

    @staticmethod
    def _batch(states: list[Tensor]) -> GoalTokens:
        # At least one column, so that phrases without any token still make a batch.
        length = max(1, max(map(len, states)))
        padded = pad_sequence(states, batch_first=True)
        padded = nn.functional.pad(padded, (0, 0, 0, length - padded.shape[1]))
        counts = torch.tensor([len(s) for s in states], device=padded.device)
        return GoalTokens(padded, torch.arange(length, device=padded.device) < counts[:, None])

    def _remember(self, phrase: str, states: Tensor) -> None:
        if phrase in self._cache:
            self._cache.move_to_end(phrase)
            return
        # A slice would keep its whole batch alive.
        self._cache[phrase] = states.clone()
        self._cached_bytes += states.nbytes
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes

    def _forget(self) -> None:
        self._cache.clear()
        self._cached_bytes = 0

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # .cuda(), .half(): what is kept lies on the old device, in the old precision. But a .to()
        # that changes nothing must forget nothing: what a phrase was first encoded with decides
        # the last digits of its states, and a resumed training needs the same ones.
        before = self.device, self.dtype
        applied = super()._apply(fn, recurse)
        if (self.device, self.dtype) != before:
            self._forget()
        return applied

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        self._forget()
        return super().load_state_dict(state_dict, strict, assign)

    def save_pretrained(self, save_directory: str | Path, **unused: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Save what was trained, and a reference (name or path, digest) to what was not.

        Frozen: config.json alone. LoRA: also a PEFT adapter. Full: also `language_model/`, whole.
        """
        path = Path(save_directory)
        path.mkdir(parents=True, exist_ok=True)
        self.save_config(path)
        model: Any = self.text_model
        if self.config["adaptation"] == "lora":
            model.save_pretrained(str(path), safe_serialization=True)
        elif self.config["adaptation"] == "full":
            model.save_pretrained(str(path / "language_model"))
            self.tokenizer.save_pretrained(path / "language_model")

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **unused: Any,
    ) -> Self:
        """Load what `save_pretrained` wrote, from a folder or a hub repository.

        `torch_dtype` sets the language model's precision; token states are float32 always. Other
        arguments of diffusers (device maps, variants, formats other than safetensors) are ignored.

        Raises:
            UserError: nothing was saved there, or the language model it refers to is gone.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            try:
                path = Path(
                    snapshot_download(
                        str(pretrained_model_name_or_path),
                        revision=revision,
                        allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
                    )
                )
            except (OSError, ValueError) as error:
                raise UserError(
                    f"No goal encoder at {str(pretrained_model_name_or_path)!r}: it is no folder, "
                    f"and the hub did not give it ({error}). Give a folder that was saved here."
                ) from error
        path = path / (subfolder or "")
        if not (path / "config.json").is_file():
            raise UserError(f"No goal encoder in {path}: config.json is missing.")
        config = cast(dict[str, Any], cls.load_config(path))
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        encoder = cls(**settings, weights=str(path))
        if torch_dtype is not None:
            nn.Module.to(encoder, dtype=torch_dtype)
        return encoder
