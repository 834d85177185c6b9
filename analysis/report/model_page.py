"""The report of a pretrained language model: a map of its layers, and what their eigenvectors mean in tokens."""

import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sqs_jax import display
from sqs_jax.analysis.as_json import as_json
from sqs_jax.analysis.reading_kinds import READINGS, Reading
from sqs_jax.analysis.report import page
from sqs_jax.analysis.runs.model_reading import ModelReading, ReadingOptions, read_model, text_words
from sqs_jax.files import npz, write
from sqs_jax.messages import InputError
from sqs_jax.pretrained.loading import load_pretrained
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.tensor_files import is_pretrained, read_json
from sqs_jax.pretrained.vocabulary import token_bytes_of
from sqs_jax.pretrained.windows import read_text
from sqs_jax.start import extra
from sqs_jax.train.run_folder import provenance


@extra()
def write_model_report(
    path: str,
    *,
    text: Path,
    out_dir: Path | None = None,
    words: tuple[str, ...] = (),
    readings: tuple[Reading, ...] = ("affine",),
    against: tuple[Path, ...] = (),
    command: str = "sqs_jax.analysis.write_model_report",
    **settings: Any,
) -> Path:
    """Reads the GLUs of a pretrained language model on a text, and writes a folder with a page and its numbers.

    `report.html`, the page; `summary.json`: `loss` of the model in nats a token, `layers`, a list of {"layer", "sinks",
    "effective_rank", "readings": {name: {"r2", "loss_rise"}}}, `all`, {reading: rise with all of them replaced}, and
    `seconds` that layers and losses took in this call; `spectrum.npz`: `tokens` (m,), `layers` (n,), `values`
    (n, m, k), `vectors` (n, m, k, d); and what was fitted of each layer, from which another call goes on.

    Args:
      path: of the model, as in `load_pretrained`.
      text: a UTF-8 file that it is read on.
      out_dir: the folder, by default runs/<name of the model>-reading.
      words: each has to be one token of the model, such as " king"; by default the 200 most frequent ones of the text.
      readings: any of "identity", "joint", "affine" and "surrogate"; "affine" is measured in any case.
      against: other models, read on the same text in `against/<name>` of this folder, or folders of their readings:
        their maps are shown beside this one's.
      command: what made the report, for its footer.
      settings: `layers`, `tokens`, `test_tokens`, `pairs`, `order` and `seed`, as in `ReadingOptions`.

    Returns the page's path. Raises InputError for a model, a text, a layer, a word or a folder that does not fit.
    """
    names = _names_beside(against)
    content = read_text(text)
    model = load_pretrained(path)
    folder = out_dir or Path("runs") / f"{model.name}-reading"
    options = ReadingOptions(readings=_ordered(readings), words=text_words(model, words), **settings)
    display.line(_banner(model, text))
    result = read_model(model, content, options, folder)
    same = {"text": text, "readings": readings, "command": command} | settings
    others = [_beside(other, folder / "against" / name, same) for other, name in zip(against, names, strict=True)]
    summary = _summary(model, text, options, result)
    shown = _content(model, options, result, summary, others, command)
    made = {
        "spectrum.npz": npz(_arrays(result)),
        "summary.json": page.json_file(summary),
        "report.html": page.render(shown, _texts(model, text, options, result) | {"command": command}).encode(),
    }
    for name, data in made.items():
        write(folder / name, data)
    return folder / "report.html"


def _ordered(readings: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """These readings and "affine", each once; the last is still the last."""
    last: Reading = readings[-1] if readings else "affine"
    before: list[Reading] = [name for name in READINGS if name in ("affine", *readings) and name != last]
    return (*before, last)


def _without_words(command: str) -> str:
    """The command of a page without its words: where the page says how others are added."""
    parts = shlex.split(command)
    if "--words" in parts:
        at = parts.index("--words")
        del parts[at : at + 2]
    return shlex.join(part for part in parts if not part.startswith("--words="))


def _banner(model: LanguageModel, text: Path) -> str:
    arch = model.architecture
    return f"{model.name}: {arch.family}, {arch.layers} layers of width {arch.width}, GLUs of {arch.hidden}; on {text}"


def _summary(model: LanguageModel, text: Path, options: ReadingOptions, result: ModelReading) -> dict[str, Any]:
    arch = model.architecture
    sizes = {name: getattr(arch, name) for name in ("family", "layers", "width", "hidden", "heads", "vocab", "context")}
    return {
        "model": model.name,
        "sizes": sizes,
        "text": text.name,
        "loss": result.loss,
        "seconds": result.seconds,
        "layers": _plain(result.layers),
        "all": _plain(result.all),
        "reading": options.readings[-1],
        "order": options.order,
        "tokens": result.tokens,
        "test_tokens": result.test_tokens,
        "largest_residual": as_json(max(float(np.max(pairs.residuals)) for pairs in result.pairs)),
        "provenance": provenance(),
    }


def _plain(tree: Any) -> Any:
    """A tree of dicts and lists with its numbers as JSON has them: null where there is none."""
    return jax.tree.map(lambda leaf: as_json(leaf) if isinstance(leaf, float) else leaf, tree)


def _arrays(result: ModelReading) -> dict[str, Any]:
    stacked = {name: np.stack([getattr(pairs, name) for pairs in result.pairs]) for name in ("values", "vectors")}
    return {"tokens": np.array(result.words), "layers": np.array([row["layer"] for row in result.layers])} | stacked


def _content(model, options: ReadingOptions, result: ModelReading, summary, others, command: str) -> dict[str, Any]:
    spelled = token_bytes_of(model.tokenizer)
    contexts, places = _contexts(result, spelled)
    language = {
        "name": model.name,
        "vocabulary": [_shown(spelling) for spelling in spelled],
        "tokens": result.words,
        "layers": summary["layers"],
        "all": summary["all"],
        "loss": summary["loss"],
        "readings": list(options.readings),
        "reading": options.readings[-1],
        "order": options.order,
        "values": [page.rounded(pairs.values) for pairs in result.pairs],
        "shares": [page.rounded(np.round([pairs.r2, pairs.linear_share, pairs.share], 3)) for pairs in result.pairs],
        "likes": [pairs.likes.tolist() for pairs in result.pairs],
        "linear": [pairs.linear_likes.tolist() for pairs in result.pairs],
        "places": places,
        "contexts": contexts,
        "others": others,
        "command": _without_words(command),
    }
    worst = min(row["readings"][options.readings[-1]]["r2"] for row in result.layers)
    cards = [
        [f"{result.loss:.3f}", "loss of the model, nats a token"],
        *[[f"{rise:+.3f}", f"rise of the loss, all read layers replaced, {name}"] for name, rise in result.all.items()],
        [f"{worst:.3f}", f"R² of the layer that reads worst, {options.readings[-1]}"],
        [str(sum(row["sinks"] for row in result.layers)), "attention sinks, all layers"],
    ]
    about = {name: summary[name] for name in ("sizes", "tokens", "test_tokens", "text", "largest_residual")}
    return {"model": language, "cards": cards, "provenance": about | summary["provenance"]}


_BEFORE, _AFTER = 12, 3  # tokens of a context


def _contexts(result: ModelReading, spelled: list[bytes]) -> tuple[list[list[str]], list[Any]]:
    """The contexts that vectors are shown with, each once, as text before, token, text after; and their numbers."""
    used, inverse = np.unique(np.concatenate([pairs.places.ravel() for pairs in result.pairs]), return_inverse=True)
    length = result.text.shape[1]
    contexts = []
    for place in used:
        row, at = divmod(int(place), length)
        tokens = result.text[row]
        parts = tokens[max(0, at - _BEFORE) : at], tokens[at : at + 1], tokens[at + 1 : at + 1 + _AFTER]
        contexts.append([_text(spelled, part) for part in parts])
    shapes = [pairs.places.shape for pairs in result.pairs]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return contexts, [part.reshape(shape).tolist() for part, shape in zip(np.split(inverse, ends), shapes, strict=True)]


def _text(spelled: list[bytes], tokens) -> str:
    return b"".join(spelled[token] if token < len(spelled) else b"" for token in tokens).decode(errors="replace")


def _shown(spelling: bytes) -> str:
    return spelling.decode(errors="backslashreplace")


def _names_beside(against: tuple[Path, ...]) -> list[str]:
    """The names of models, or of those that folders are readings of. Raises InputError for what is neither."""
    names = [load_pretrained(str(each)).name if is_pretrained(each) else _map(each)["name"] for each in against]
    if len({*names}) < len(names):
        raise InputError(f"`against` has two models of one name: {', '.join(names)}")
    return names


def _beside(other: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The map of another model, read into its own folder, or of a reading that is there."""
    if not is_pretrained(other):
        return _map(other)
    write_model_report(str(other), out_dir=folder, **settings)
    return _map(folder)


def _map(folder: Path) -> dict[str, Any]:
    """The map of a reading."""
    summary = read_json(folder / "summary.json")
    if not {"all", "layers", "loss", "model"} <= summary.keys():
        raise InputError(f"`against` has {folder}: neither a pretrained model nor the reading of one")
    return {"name": summary["model"], "layers": summary["layers"], "all": summary["all"], "loss": summary["loss"]}


def _texts(model: LanguageModel, text: Path, options: ReadingOptions, result: ModelReading) -> dict[str, str]:
    name = options.readings[-1]
    values = [row["readings"][name]["r2"] for row in result.layers]
    kinds = {
        "identity": "Read from the weights alone, the gate as the identity,",
        "joint": "Read from the weights, with one gain for each hidden unit,",
        "affine": "Read from the weights, with one gain for each hidden unit and a linear part,",
        "surrogate": "Read by surrogates, bilinear layers that were fitted to the GLUs, with weights of their own,",
    }
    count = len(result.layers)
    which = "every GLU" if count == model.layers else f"{count} of {model.layers} GLUs"
    verdict = (
        f"{kinds[name]} quadratic forms explain {100 * min(values):.1f} to {100 * max(values):.1f} % of what a GLU "
        f"adds, on {result.test_tokens:,} tokens of held-out text. With them in the place of {which} the model's loss, "
        f"{result.loss:.3f} nats a token, rises by {result.all[name]:.3f}."
    )
    arch = model.architecture
    subtitle = (
        f"{arch.layers} layers of width {arch.width} with GLUs of {arch.hidden}, {arch.vocab:,} tokens; read on "
        f"{text.name}, fitted on {result.tokens:,} tokens."
    )
    stored = "Every number here lies in the files beside this page: summary.json and spectrum.npz."
    return page.texts(model.name, subtitle, verdict, stored=stored)
