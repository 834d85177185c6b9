"""Reading a Transformer: its GLUs as forms, their eigenvectors as tokens, and the report of a run on text."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.screenshot import opened
from sqs_jax.analysis import language as reading
from sqs_jax.analysis.calibration import METHODS, network_logits
from sqs_jax.analysis.cli import main
from sqs_jax.analysis.report.language_page import drawn_windows, frequent_tokens, write_language_report
from sqs_jax.train import InputError, TextConfig, train
from sqs_jax.train.step import parameters, with_parameters
from sqs_jax.train.text.language_model import load_language
from sqs_jax.train.text.token_stream import Stream, load_text
from sqs_jax.transformer import Transformer, TransformerConfig, rms_norm
from tests.helpers import check_page, quiet

CONFIG = TransformerConfig(vocab=40, context=16, layers=2, width=16, heads=2, hidden=24)
TOKENS = np.asarray(jax.random.randint(jax.random.key(5), (24, 17), 0, 40))
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]


def network(gate="sqs", **changes):
    """A network with weights far from their first values, the same for every gate."""
    model = Transformer(dataclasses.replace(CONFIG, gate=gate, **changes), rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape), parameters(model))
    return with_parameters(model, params)


def loss_of(model):
    log_p = jax.nn.log_softmax(model(jnp.asarray(INPUTS)))
    return -float(jnp.mean(jnp.take_along_axis(log_p, jnp.asarray(TARGETS)[:, :, None], axis=2)))


def test_the_weights_with_the_norm_folded_in_are_the_block():
    model = network()
    streams = reading.normalised_streams(model, INPUTS)
    assert streams.shape == (2, 24 * 16, 16)
    np.testing.assert_allclose(np.mean(streams**2, axis=2), 1, rtol=1e-4)
    x = model.embed(jnp.asarray(INPUTS))
    for layer in range(2):
        block = model.block(layer)
        x = block.attend(x)[0]
        result = network_logits(reading.mlp_weights(model, layer), jnp.asarray(streams[layer]), block.glu.sigma)
        np.testing.assert_allclose(result.reshape(x.shape), block.mlp(x), atol=1e-4)
        x = x + block.mlp(x)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tokens_direction_is_its_logit(tied):
    model = network(tied=tied)
    x = jax.random.normal(jax.random.key(3), (5, 16))
    directions = reading.token_directions(model, [3, 39, 0])
    scaled = rms_norm(x, jnp.ones(16))
    np.testing.assert_allclose(scaled @ directions, model.logits(x)[:, np.array([3, 39, 0])], atol=1e-4)


def test_a_bilinear_network_is_its_own_quadratic_form():
    model = network("bilinear")
    layers, together, _ = reading.read_mlps(model, (INPUTS[:12], TARGETS[:12]), (INPUTS[12:], TARGETS[12:]))
    for row in layers:
        for name, result in row.items():
            np.testing.assert_allclose(result.r2, 1, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(result.loss_rise, 0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(list(together.values()), 0, atol=1e-5)


def test_replacing_every_glu_by_its_plain_form_makes_the_bilinear_network():
    model = network("silu")
    streams = reading.normalised_streams(model, INPUTS)
    plain = {layer: reading.calibrate_mlp(model, layer, streams[layer], "identity") for layer in range(2)}
    plain = {layer: dataclasses.replace(result, offset=jnp.zeros(16)) for layer, result in plain.items()}
    np.testing.assert_allclose(reading.model_loss(model, INPUTS, TARGETS, {}), loss_of(model), rtol=1e-5)
    replaced = reading.model_loss(model, INPUTS, TARGETS, plain)
    np.testing.assert_allclose(replaced, loss_of(network("bilinear")), rtol=1e-5)
    assert abs(replaced - loss_of(model)) > 1e-3
    # A target below 0 counts for nothing.
    half = np.where(np.arange(16) < 8, TARGETS, -1)
    log_p = jax.nn.log_softmax(model(jnp.asarray(INPUTS)))[:, :8]
    expected = -float(jnp.mean(jnp.take_along_axis(log_p, jnp.asarray(TARGETS)[:, :8, None], axis=2)))
    np.testing.assert_allclose(reading.model_loss(model, INPUTS, half, {}), expected, rtol=1e-5)


def r2_of(y, form, axis=None):
    left, spread = (np.asarray(a, np.float64) for a in (y - form, y - y.mean(0)))
    return 1 - np.sum((left - left.mean(0) if axis == 0 else left) ** 2, axis=axis) / np.sum(spread**2, axis=axis)


def test_fidelity_is_that_of_tokens_the_gains_have_not_seen():
    model = network("sqs")
    # The last window of each part is shorter: nothing behind its end may count.
    train, test = (INPUTS[:16], TARGETS[:16].copy()), (INPUTS[16:], TARGETS[16:].copy())
    train[1][-1, 5:] = test[1][-1, 3:] = -1
    layers, together, calibrations = reading.read_mlps(model, train, test)
    x, seen = (reading.normalised_streams(model, part)[1][targets.reshape(-1) >= 0] for part, targets in (test, train))
    assert (len(seen), len(x)) == (16 * 16 - 11, 8 * 16 - 13)
    weights, gate, result = reading.mlp_weights(model, 1), model.block(1).glu.sigma, calibrations[1]["output"]
    np.testing.assert_allclose(result.gain, reading.calibrate_mlp(model, 1, seen, "output").gain, rtol=1e-5)
    w, v, out = (np.asarray(part, np.float64) for part in (weights.w, weights.v, weights.out))
    a, u = x @ w, x @ v
    y, form = (a * np.asarray(gate(jnp.asarray(u, jnp.float32)))) @ out, (a * u * np.asarray(result.gain)) @ out
    np.testing.assert_allclose(layers[1]["output"].r2, r2_of(y, form + np.asarray(result.offset)), rtol=1e-4)
    np.testing.assert_allclose(
        reading.direction_r2(weights, x, gate, calibration=result), r2_of(y, form, axis=0), rtol=1e-3
    )
    # Both rises, of forms with their offsets put into the network by hand.
    assert np.max(np.abs(result.offset)) > 0.1
    forms = [calibrations[layer]["output"] for layer in range(2)]
    whole = loss_with(model, test, {})
    np.testing.assert_allclose(layers[1]["output"].loss_rise, loss_with(model, test, {1: forms[1]}) - whole, atol=1e-5)
    np.testing.assert_allclose(together["output"], loss_with(model, test, dict(enumerate(forms))) - whole, atol=1e-5)


def loss_with(model, windows, replaced):
    """The loss, a·u·γ D + offset in the place of the GLUs of these layers."""
    x = model.embed(jnp.asarray(windows[0]))
    for layer in range(2):
        block = model.block(layer)
        x = block.attend(x)[0]
        if layer not in replaced:
            x = x + block.mlp(x)
            continue
        z = rms_norm(x, block.glu_norm[...])
        hidden = (z @ block.glu.w[...]) * (z @ block.glu.v[...]) * replaced[layer].gain[None, None]
        x = x + hidden @ block.down[...] + replaced[layer].offset[None, None]
    log_p = np.asarray(jax.nn.log_softmax(model.logits(x)), np.float64)
    return -np.mean([log_p[i, j, windows[1][i, j]] for i, j in np.argwhere(windows[1] >= 0)])


def test_eigenpairs_of_tokens_are_those_of_the_dense_matrix():
    model, gain = network(), jnp.linspace(0.5, 2, 24)
    pairs = reading.token_eigenpairs(model, 1, [7, 20], 3, gain=gain)
    weights = jax.tree.map(lambda array: np.asarray(array, np.float64), parameters(model))
    block = weights["blocks"]
    scale = block["glu_norm"][1][:, None]
    w, v = scale * block["glu"]["w"][1], scale * block["glu"]["v"][1]
    for place, token in enumerate((7, 20)):
        column = block["down"][1] @ (weights["norm"] * weights["embedding"][token]) * np.asarray(gain, np.float64)
        matrix = (w * column) @ v.T
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        order = np.argsort(-np.abs(values))[:3]
        np.testing.assert_allclose(pairs.values[place], values[order], rtol=1e-4)
        np.testing.assert_allclose(np.abs(np.sum(pairs.vectors[place] * vectors[:, order].T, axis=1)), 1, atol=1e-4)


def test_what_a_vector_likes_is_found_where_it_was_planted():
    model = network()
    embedding = np.asarray(model.embedding[...])
    vectors = np.stack([embedding[11], -embedding[30]])[None]
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    result = reading.liked_tokens(vectors, model, 3)
    assert result.shape == (1, 2, 2, 3)
    assert result[0, 0, 0, 0] == 11
    assert result[0, 1, 1, 0] == 30
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    x[17], x[40] = 9 * vectors[0, 0], -8 * vectors[0, 0]
    assert reading.liked_places(vectors, x)[0, 0, :2].tolist() == [17, 40]
    response = (x @ vectors[0, 1]) ** 2
    np.testing.assert_array_equal(reading.liked_places(vectors, x)[0, 1], np.argsort(-response)[:3])


@pytest.mark.parametrize("columns", [3, 40, 2000, 4096, 5001])
def test_the_first_columns_are_those_of_a_whole_sort(columns):
    score = np.random.default_rng(columns).normal(size=(7, columns)).astype(np.float32)
    score[0] -= 100  # all of it below what fills a block
    expected = np.argsort(-score, axis=1)[:, :5]
    np.testing.assert_array_equal(reading.first_columns(score, 5), expected)


def test_frequent_tokens_and_drawn_windows():
    stream = Stream(np.array([0, 5, 5, 7, 0, 5, 9, 0], np.uint16), 1, 2)
    assert frequent_tokens(stream, 3, end=0) == [5, 7, 9]
    assert frequent_tokens(stream, 1, end=0) == [5]
    inputs, targets = drawn_windows(stream, 4, 100)
    np.testing.assert_array_equal(inputs[targets >= 0], stream.tokens[:-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: reading.mlp_weights(model, 2), "`layer` is 2: a number from 0 to 1"),
        (
            lambda model: reading.mlp_weights(model, 0, jnp.ones((5, 1))),
            r"`directions` has shape \(5, 1\)",
        ),
        (lambda model: reading.token_directions(model, [40]), "`tokens` has values from 40 to 40"),
        (lambda model: reading.token_eigenpairs(model, 0, [1], 17), "`k` is 17"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(network())


SMALL = TextConfig(vocab=400, context=32, width=16, layers=2, heads=2, steps=60, batch_size=8, lr=1e-2, warmup=5)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A trained run with its report."""
    folder = tmp_path_factory.mktemp("runs") / "sqs"
    train(SMALL, folder, report=quiet)
    assert write_language_report(folder) == folder / "report.html"
    return folder


def test_the_report_writes_what_it_shows(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    result = summary["analysis"]
    assert len(result["layers"]) == 2
    for row in result["layers"]:
        assert set(row["gains"]) == set(METHODS)
        assert row["gains"]["joint"]["r2"] > row["gains"]["identity"]["r2"]
        assert 1 <= row["participation_rank"] <= row["eigenvalues"] == 16
        assert row["decay"][0] == 1
    model, _, config = load_language(run_dir)
    with np.load(run_dir / "spectrum.npz") as file:
        arrays = dict(file)
    m = len(arrays["tokens"])
    assert arrays["values"].shape == (2, m, 4)
    assert arrays["vectors"].shape == (2, m, 4, 16)
    assert arrays["gain"].shape == (2, 64)
    again = reading.token_eigenpairs(model, 1, arrays["tokens"][:3], 4, gain=jnp.asarray(arrays["gain"][1]))
    np.testing.assert_allclose(again.values, arrays["values"][1, :3], rtol=1e-3)
    tokens = load_text(config).test.tokens
    assert arrays["tokens"][0] == np.argmax(np.bincount(tokens[tokens != 0]))
    for name in ("report.html", "curves.png"):
        assert (run_dir / name).stat().st_size > 1000


def test_beside_another_run_and_by_other_gains(run_dir, tmp_path, capsys):
    copies = [shutil.copytree(run_dir, tmp_path / name) for name in ("one", "two")]
    main(["report", str(copies[0]), "--method", "output", "--against", str(copies[1])])
    assert capsys.readouterr().out.strip().endswith("report.html")
    summary = json.loads((copies[0] / "summary.json").read_text())
    assert summary["analysis"]["method"] == "output"
    page = (copies[0] / "report.html").read_text()
    assert '"others":[{"name":"two"' in page
    assert "--method output --against" in page


def change_text(path, old, new):
    (path / "text.json").write_text((path / "text.json").read_text().replace(old, new))


def test_runs_on_text_are_compared_elsewhere(run_dir, tmp_path, capsys):
    copies = [str(shutil.copytree(run_dir, tmp_path / name)) for name in "abc"]
    with pytest.raises(SystemExit) as end:
        main(["compare", copies[0], "--", *copies[1:]])
    assert end.value.code == 2
    assert "is no run on images: it cannot be compared with one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "summary.json").unlink(), "is not finished: go on with"),
        (lambda path: change_text(path, '"sha256": "', '"sha256": "0'), "was trained on another text"),
        (lambda path: (path / "text.json").write_text("["), "is damaged"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "has no checkpoint"),
    ],
)
def test_a_run_that_cannot_be_read_says_why(run_dir, tmp_path, damage, message):
    path = shutil.copytree(run_dir, tmp_path / "copy")
    damage(path)
    before = (path / "report.html").stat().st_mtime_ns
    with pytest.raises(InputError, match=message):
        write_language_report(path)
    assert (path / "report.html").stat().st_mtime_ns == before


def test_gains_and_other_runs_that_do_not_fit_are_named(run_dir, tmp_path):
    with pytest.raises(InputError, match="`method` is 'gaussian': of a run on text, one of identity"):
        write_language_report(run_dir, method="gaussian")
    with pytest.raises(InputError, match="no finished run"):
        write_language_report(run_dir, against=(tmp_path,))
    path = shutil.copytree(run_dir, tmp_path / "copy")
    summary = json.loads((path / "summary.json").read_text())
    del summary["analysis"]
    (path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match="it has no report yet"):
        write_language_report(run_dir, against=(path,))


def test_the_page_finds_tokens_in_a_real_browser(run_dir, browser):
    from selenium.webdriver.common.by import By

    opened(browser, run_dir / "report.html")
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert not browser.find_element(By.ID, "spectrum").is_displayed()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#decay-plots .plot .scatterlayer .trace")) == 2

    def title():
        return browser.find_element(By.ID, "token-title").text

    box = browser.find_element(By.ID, "token-search")
    box.send_keys("said")
    assert title().startswith("“·said”, layer 2")
    assert "1 of the" in browser.find_element(By.ID, "token-note").text
    assert len(browser.find_elements(By.CSS_SELECTOR, "#token-vectors .vector")) == 4
    shown = browser.find_element(By.ID, "token-vectors").text
    browser.find_elements(By.CSS_SELECTOR, "#layer-tabs button")[0].click()
    assert title().startswith("“·said”, layer 1")
    assert browser.find_element(By.ID, "token-vectors").text != shown
    with np.load(run_dir / "spectrum.npz") as file:
        tokenizer = load_language(run_dir)[1]
        place = file["tokens"].tolist().index(tokenizer.encode(" said").ids[0])
        value = float(file["values"][0, place, 0])
    assert f"{abs(value):.3g}"[:4] in browser.find_element(By.CSS_SELECTOR, "#token-vectors h4").text
    box.clear()
    box.send_keys("zzzz")
    assert browser.find_element(By.ID, "token-note").text == "no such token"
    check_page(browser, 4)
