"""Two towers of sparse-generalists for open_clip: `model, preprocess, tokenizer = load(FOLDER)`. Needs open_clip_torch, regex and Pillow.

`model` is open_clip's CustomTextCLIP: encode_image takes preprocess(picture) [N, 3, S, S], encode_text tokenizer(texts) [N, L]. Its text
tower is open_clip's with a LayerNorm on embeddings, and padding is seen by nobody.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CustomTextCLIP
from open_clip.transformer import LayerNorm, TextTransformer
from safetensors.torch import load_file
from torch import Tensor


class TextTower(TextTransformer):
    def __init__(self, embed_dim: int, options: dict[str, Any]) -> None:
        super().__init__(output_dim=embed_dim, use_pad_mask=True, **options)
        self.ln_pre = LayerNorm(options["width"])

    def _embeds(self, text: Tensor) -> tuple[Tensor, Tensor]:
        x_BLD, mask = super()._embeds(text)
        return self.ln_pre(x_BLD), mask


def load(folder: str | Path) -> tuple[Any, Callable[[Any], Tensor], Callable[[Sequence[str]], Tensor]]:
    """(model, preprocess, tokenizer) of an exported folder."""
    folder = Path(folder)
    about = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    options, own = about["model_cfg"], about["sparse_generalists"]
    text = options["text_cfg"]
    model = CustomTextCLIP(
        options["embed_dim"], options["vision_cfg"], text, init_logit_bias=options.get("init_logit_bias")
    )
    model.text = TextTower(options["embed_dim"], text)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    processor = _processing(folder).SparseGeneralistProcessor.from_pretrained(folder)
    mean_C11, std_C11 = (torch.tensor(about["preprocess_cfg"][name])[:, None, None] * 255 for name in ("mean", "std"))

    def preprocess(picture: Any) -> Tensor:
        return (processor.images(picture)[0].float() - mean_C11) / std_C11

    def tokenizer(texts: Sequence[str]) -> Tensor:
        tokens_NL = processor.tokens([texts] if isinstance(texts, str) else texts, own["max_text"])
        tokens_NL = torch.where(tokens_NL < 0, text["pad_id"], tokens_NL)
        first_N1 = torch.full_like(tokens_NL[:, :1], own["spe"])
        missing = text["context_length"] - 1 - tokens_NL.shape[1]
        return torch.nn.functional.pad(torch.cat([first_N1, tokens_NL], dim=1), (0, missing), value=text["pad_id"])

    return model.eval(), preprocess, tokenizer


def _processing(folder: Path) -> Any:
    """The module in the folder."""
    spec = importlib.util.spec_from_file_location(
        "processing_sparse_generalist", folder / "processing_sparse_generalist.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
