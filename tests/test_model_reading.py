"""The reading of a pretrained model: streams, sinks, forms in the place of GLUs, words, and the command's page."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.analysis import language
from sqs_jax.analysis.calibration import network_logits
from sqs_jax.analysis.cli import main
from sqs_jax.analysis.interaction import GLUWeights, interaction_matrices
from sqs_jax.analysis.language import predicted
from sqs_jax.analysis.layer_reading import (
    agreement,
    centred,
    distinct_places,
    fit_layer,
    held_out,
    linear_directions,
    read_words,
)
from sqs_jax.analysis.runs import model_reading
from sqs_jax.analysis.runs.model_reading import ReadingOptions, load_layer, read_model
from sqs_jax.analysis.streams import Form, is_sink, layer_streams, losses, sink_limit
from sqs_jax.messages import InputError
from sqs_jax.pretrained import load_pretrained
from sqs_jax.pretrained.windows import next_tokens, read_text, text_windows
from sqs_jax.train.cli.train import main as train_main
from tests.helpers import check_page, network, samples, wrong
from tests.test_families import NAMES, loaded, logits_of

TOKENS = np.random.default_rng(0).integers(0, 40, (6, 24))
TARGETS = next_tokens(TOKENS)


def loss_of(model):
    logits = logits_of(model, TOKENS).astype(np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    return -np.mean([log_p[i, j, TARGETS[i, j]] for i, j in np.argwhere(TARGETS >= 0)])


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_as_analysis_reads_them_are_the_glu_of_every_family(name):
    model = loaded(name)
    directions = jax.random.normal(jax.random.key(0), (32, 3))
    for stream in layer_streams(model, TOKENS):
        gate = language.glu_gate(model, stream.layer)
        result = network_logits(language.mlp_weights(model, stream.layer), jnp.asarray(stream.x), gate)
        np.testing.assert_allclose(result, stream.y, atol=1e-4 * np.abs(stream.y).max())
        scale = model.block(stream.layer).get("glu_post_norm", jnp.ones(32))
        along = network_logits(language.mlp_weights(model, stream.layer, directions), jnp.asarray(stream.x), gate)
        np.testing.assert_allclose(along, (stream.y * scale[None]) @ directions, atol=1e-3 * np.abs(along).max())
        if model.architecture.norms != "after":
            np.testing.assert_allclose(np.mean(stream.x**2, axis=1), 1, atol=0.05)


@pytest.mark.parametrize("name", ["llama2", "gemma2", "granite", "olmo2"])
def test_losses_with_layers_replaced(name):
    model = loaded(name)
    exact = {}
    for stream in layer_streams(model, TOKENS):
        # A bilinear layer that gives a constant: its place in the model is checked by hand below.
        weights = GLUWeights(
            jnp.zeros((32, 1)), jnp.zeros((32, 1)), jnp.zeros((1, 32)), out_bias=0.1 * jnp.arange(32.0)
        )
        exact[stream.layer] = Form(weights)
    whole, first, both, again = losses(model, (TOKENS, TARGETS), [{}, {0: exact[0]}, exact, {0: lambda: exact[0]}])
    np.testing.assert_allclose(whole, loss_of(model), rtol=1e-5)
    assert first == again

    def constant(layers):
        def block(layer):
            weights = dict(model.block(layer))
            if layer in layers:
                weights |= {"down": jnp.zeros_like(weights["down"]), "down_bias": 0.1 * jnp.arange(32.0)}
            return weights

        return loss_of(type(model)(**{**model.__dict__, "block": block}))

    np.testing.assert_allclose(first, constant({0}), rtol=1e-5)
    np.testing.assert_allclose(both, constant({0, 1, 2}), rtol=1e-5)
    assert abs(first - whole) > 1e-3


def test_sinks_keep_the_models_own_output():
    model = loaded("llama2")
    first = next(iter(layer_streams(model, TOKENS)))
    size = np.sum(first.y**2, axis=1)
    nothing = GLUWeights(jnp.zeros((32, 1)), jnp.zeros((32, 1)), jnp.zeros((1, 32)))
    whole, all_kept, none_kept, some = losses(
        model,
        (TOKENS, TARGETS),
        [{}, {0: Form(nothing, 0.0)}, {0: Form(nothing)}, {0: Form(nothing, float(np.median(size)))}],
    )
    np.testing.assert_allclose(all_kept, whole, rtol=1e-6)
    assert len({round(loss, 5) for loss in (whole, none_kept, some)}) == 3
    y = np.ones((50, 4), np.float32)
    y[7] = 30
    assert np.flatnonzero(is_sink(y, sink_limit(y))).tolist() == [7]
    y[7] = 9
    assert not is_sink(y, sink_limit(y)).any()


def test_sinks_are_left_out_of_fits():
    model = loaded("llama2")
    seen = next(iter(layer_streams(model, np.tile(TOKENS, (20, 1)))))
    x, y = seen.x.copy(), seen.y.copy()
    x[3], y[3] = 50 * x[3], 1e6 * y[3]
    spoilt = fit_layer(model, seen._replace(x=x, y=y), ("affine",), steps=1)
    clean = fit_layer(model, seen._replace(x=np.delete(seen.x, 3, 0), y=np.delete(seen.y, 3, 0)), ("affine",), steps=1)
    assert (spoilt.sinks, clean.sinks) == (1, 0)
    for a, b in zip(spoilt.layers["affine"], clean.layers["affine"], strict=True):
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_layer_in_centred_coordinates_is_the_same_layer():
    weights = network(biases=True)._replace(
        skip=jnp.asarray(np.random.default_rng(3).normal(size=(12, 4)), jnp.float32)
    )
    x = samples(weights, 60) + 2
    mean = x.mean(0)
    moved = centred(weights, mean)
    np.testing.assert_allclose(predicted(moved, x - mean), predicted(weights, x), rtol=1e-4, atol=1e-4)
    bare = moved._replace(w_bias=None, v_bias=None, skip=None, out_bias=None)
    matrices, c = np.asarray(interaction_matrices(bare), np.float64), (x - mean).astype(np.float64)
    form = np.einsum("ni,oij,nj->no", c, matrices, c) + c @ np.asarray(linear_directions(moved), np.float64)
    rest = predicted(weights, x) - form
    np.testing.assert_allclose(rest, np.tile(rest[0], (60, 1)), atol=1e-3)


@pytest.mark.parametrize("order", ["size", "data"])
def test_words_are_read_by_the_pairs_of_their_forms(order):
    model = loaded("gemma2")
    seen = list(layer_streams(model, np.random.default_rng(1).integers(0, 40, (60, 24))))[1]
    fitted = fit_layer(model, seen, ("affine",), steps=1)
    words, there = [3, 17, 30], held_out(fitted, seen)
    result = read_words(model, fitted, "affine", there, words, k=32, order=order)
    # All pairs and the linear part are the whole reading.
    np.testing.assert_allclose(result.share, result.r2, atol=1e-3)
    assert np.all(result.r2 > 0.3)
    few = read_words(model, fitted, "affine", there, words, k=3, order=order)
    np.testing.assert_allclose(np.abs(few.values), np.abs(result.values[:, :3]), rtol=1e-3)
    assert few.places.shape == (3, 3, 3)
    for word in few.places:
        assert len(set(word.ravel().tolist())) == 9
    if order == "data":
        c = seen.x - fitted.mean
        np.testing.assert_allclose(np.mean((c @ few.vectors[0].T) ** 2, axis=0), 1, rtol=0.05)


def test_no_place_is_taken_twice():
    response = np.zeros((10, 1, 2))
    response[[2, 5, 7], 0, 0] = [9, -8, 7]
    response[[5, 2, 1], 0, 1] = [9, -8, 7]
    assert distinct_places(response, 2)[0, 0].tolist() == [2, 5]
    assert distinct_places(response, 2)[0, 1, 0] == 1


def test_agreement_of_a_reading_with_itself_and_with_another():
    a, b = network(d=20, h=30, seed=0), network(d=20, h=30, seed=1)
    directions = jnp.eye(4)
    same = agreement(a, a._replace(w=-a.w, out=-a.out), directions)
    np.testing.assert_allclose([same["form_cosine"], same["overlap"]], 1, atol=1e-4)
    other = agreement(a, b, directions)
    assert np.all(np.abs(other["form_cosine"]) < 0.6)
    assert abs(np.mean(other["form_cosine"])) < 0.4
    assert np.mean(other["overlap"]) < 0.6


def test_windows_begin_with_the_beginning_and_none_is_in_both(stories):
    model = load_pretrained(stories[0])
    text = read_text(stories[1])
    train, test = text_windows(model, text, 3000, 2000)
    assert (train.shape, test.shape) == ((6, 512), (4, 512))
    assert set(train[:, 0]) == set(test[:, 0]) == {1}
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}
    with pytest.raises(InputError, match=r"the text has \d+ tokens: .* are needed"):
        text_windows(model, "once upon", 3000, 2000)


SMALL = ("--tokens", "6000", "--layers", "1,3")


@pytest.fixture(scope="module")
def reading(stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readings") / "a"
    flags = ["--text", stories[1], "--out-dir", folder, "--reading", "surrogate", *SMALL, "--words", " a, the, she"]
    main(["report", *map(str, [stories[0], *flags])])
    return folder


def test_the_command_writes_what_it_measured(reading):
    summary = json.loads((reading / "summary.json").read_text())
    assert [row["layer"] for row in summary["layers"]] == [1, 3]
    for row in summary["layers"]:
        figures = row["readings"]
        assert set(figures) == {"affine", "surrogate"}
        assert figures["surrogate"]["r2"] > figures["affine"]["r2"] > 0.7
        assert figures["surrogate"]["loss_rise"] < figures["affine"]["loss_rise"] < 0.2
        assert row["sinks"] == 0
        assert 1 < row["effective_rank"] < 64
    assert summary["all"]["surrogate"] < summary["all"]["affine"] < 0.5
    assert 2 < summary["loss"] < 3
    with np.load(reading / "spectrum.npz") as file:
        assert file["layers"].tolist() == [1, 3]
        assert file["vectors"].shape == (2, 3, 4, 64)
    fitted = load_layer(reading / "layers" / "layer-03.npz")
    assert set(fitted.layers) == {"affine", "surrogate"}


def test_another_call_goes_on_from_what_is_there(reading, stories, capsys, monkeypatch):
    path = reading / "layers" / "layer-01.npz"
    before, page = path.stat().st_mtime_ns, (reading / "report.html").read_text()
    (reading / "layers" / "layer-03.npz").unlink()
    flags = ["--text", stories[1], "--out-dir", reading, "--reading", "surrogate", *SMALL, "--words", " he"]
    main(["report", *map(str, [stories[0], *flags])])
    assert path.stat().st_mtime_ns == before
    assert (reading / "layers" / "layer-03.npz").is_file()
    assert "losses with layers replaced" not in capsys.readouterr().out
    assert (reading / "report.html").read_text() != page
    with monkeypatch.context() as patch:  # nothing is left to fit: the text for it is not run through the model
        count = []
        patch.setattr(model_reading, "layer_streams", lambda *args: count.append(1) or layer_streams(*args))
        main(["report", *map(str, [stories[0], *flags])])
    assert len(count) == 1
    flags[-3:] = ["1,3", "--seed", "1"]
    assert "holds another reading (its seed differ)" in wrong(main, ["report", stories[0], *flags], capsys)
    path.write_bytes(b"PK")
    assert "layer-01.npz is damaged" in wrong(main, ["report", stories[0], *flags[:-2]], capsys)
    path.unlink()


def test_the_page_in_a_real_browser(reading, stories, browser):
    from selenium.webdriver.common.by import By

    from benchmarks.screenshot import opened

    opened(browser, reading / "report.html")
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert len(browser.find_elements(By.CSS_SELECTOR, "#plot-map-r2 .scatterlayer .trace")) == 2
    assert len(browser.find_elements(By.CSS_SELECTOR, "#model-table tbody tr")) == 3
    assert len(browser.find_elements(By.CSS_SELECTOR, "#model-vectors .vector")) == 5
    title = browser.find_element(By.ID, "model-word")
    box = browser.find_element(By.ID, "model-search")
    browser.find_elements(By.CSS_SELECTOR, "#model-layers button")[0].click()
    assert title.text.endswith("layer 1")
    box.send_keys("ca")
    assert browser.find_element(By.ID, "model-note").text == "tokens, but not computed here"
    assert "--words" in browser.find_element(By.ID, "model-command").text
    for chip in browser.find_elements(By.CSS_SELECTOR, "#model-vectors code"):
        browser.execute_script("arguments[0].textContent = '|______________________|';", chip)  # as long as they get
    check_page(browser, 1)


MISTAKES = {
    "no text": ([], "a pretrained model is read on a text: --text FILE is needed"),
    "absent text": (["--text", "nothing.txt"], "cannot read nothing.txt"),
    "layer": (["--text", "TEXT", "--layers", "9"], "layer 9: stories260K has layers 0 to 4"),
    "layers": (["--text", "TEXT", "--layers", "a"], "--layers is 'a': numbers with commas"),
    "word": (["--text", "TEXT", "--words", " zebra"], "is 6 tokens"),
    "tokens": (["--text", "TEXT", "--tokens", "90000000"], "are needed for 90000000"),
    "reading": (["--text", "TEXT", "--reading", "best"], "'best': one of identity, joint, affine, surrogate"),
    "method": (["--text", "TEXT", "--method", "joint"], "--method belongs to a run"),
    "against": (["--text", "TEXT", "--against", "nowhere"], "cannot read nowhere/summary.json"),
    "against twice": (
        ["--text", "TEXT", "--against", "MODEL", "MODEL"],
        "two models of one name: stories260K",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(stories, tmp_path, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    flags, message = MISTAKES[case]
    flags = [{"TEXT": stories[1], "MODEL": stories[0]}.get(flag, flag) for flag in flags]
    assert message in wrong(main, ["report", stories[0], *flags], capsys)
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_read_beside_it(stories, tmp_path):
    # Beside itself: both maps have to be the same, though each was read by itself.
    flags = ["--text", stories[1], "--out-dir", tmp_path / "a", "--tokens", "3000", "--layers", "2", "--words", " the"]
    main(["report", *map(str, [stories[0], *flags, "--against", stories[0]])])
    beside = tmp_path / "a" / "against" / "stories260K"
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "a", beside))
    assert (one["layers"][0]["readings"], one["all"]) == (other["layers"][0]["readings"], other["all"])
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count('"stories260K"') >= 2
    assert (beside / "report.html").is_file()


def test_a_folder_that_holds_something_else(stories, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    flags = ["--text", stories[1], "--out-dir", tmp_path, *SMALL]
    assert "is no reading, and not empty" in wrong(main, ["report", stories[0], *flags], capsys)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_pretrained_model_is_sampled(stories, capsys):
    main_flags = ["sample", stories[0], "--prompt", "Once upon a time", "--tokens", "24"]
    train_main([str(flag) for flag in [*main_flags, "--temperature", "0"]])
    text = capsys.readouterr().out
    assert text.startswith("Once upon a time, there was a little girl named")
    train_main([str(flag) for flag in [*main_flags, "--n", "2", "--seed", "3"]])
    first, second = capsys.readouterr().out.split("\n\n---\n\n")
    assert first != second
    assert "nothing.gguf: no such file" in wrong(train_main, ["sample", "nothing.gguf", "--prompt", "a"], capsys)
    assert "fewer than the context, 512" in wrong(train_main, ["sample", stories[0], "--prompt", "a " * 900], capsys)


def test_sampling_with_a_cache_is_reading_the_whole_text_anew():
    from sqs_jax.generation import Sampling, generate
    from sqs_jax.pretrained import PretrainedDecoder

    for name in ("gemma3", "phi3", "smollm3"):
        model = loaded(name)
        prompts = [[5], [7, 8, 9, 10, 11, 12, 13]]
        rows = generate(PretrainedDecoder(model), prompts, tokens=12, sampling=Sampling(temperature=0))
        for prompt, row in zip(prompts, rows, strict=True):
            tokens = [*prompt, *row]
            likeliest = logits_of(model, [tokens + [0] * (20 - len(tokens))])[0].argmax(axis=1)
            assert likeliest[len(prompt) - 1 : len(tokens) - 1].tolist() == row, name


def test_readings_may_be_had_without_a_folder(stories):
    model = load_pretrained(stories[0])
    lines = []
    result = read_model(
        model, read_text(stories[1]), ReadingOptions(layers=(2,), tokens=4000, test_tokens=2048), report=lines.append
    )
    assert 100 < len(result.words) <= 200
    assert result.layers[0]["layer"] == 2
    assert set(result.all) == {"affine"}
    assert lines[0].startswith("layer 2: R² affine")
