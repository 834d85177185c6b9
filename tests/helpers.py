"""What tests share: random layers and the network in float64 by numpy, quiet training, and the answer to a mistake."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax import GATES
from sqs_jax.analysis import GLUWeights
from sqs_jax.train import TextConfig, train
from sqs_jax.train.text.corpus import END_OF_TEXT
from sqs_jax.train.text.embedded_stories import stories


def network(d=12, h=10, outputs=4, seed=0, biases=False, embed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    weights = GLUWeights(2 * draw(d, h), 2 * draw(d, h), draw(h, outputs), draw(embed, d) if embed else None)
    if biases:
        weights = weights._replace(w_bias=draw(h), v_bias=draw(h), out_bias=draw(outputs))
    return weights


def samples(weights, n=3000, seed=1):
    rng = np.random.default_rng(seed)
    inputs = len(weights.w if weights.embed is None else weights.embed)
    return (rng.normal(size=(n, inputs)) @ rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)).astype(np.float32)


def logits64(weights, x, gate):
    """The network in float64, by numpy: (a ⊙ σ(u)) P + z L + b."""
    parts = [None if part is None else np.asarray(part, np.float64) for part in weights]
    w, v, out, embed, w_bias, v_bias, out_bias, skip = parts
    z = x if embed is None else x @ embed
    a, u = z @ w + (0 if w_bias is None else w_bias), z @ v + (0 if v_bias is None else v_bias)
    s = np.asarray(GATES[gate](jnp.asarray(u, jnp.float32)), np.float64)
    linear = (0 if skip is None else z @ skip) + (0 if out_bias is None else out_bias)
    return (a * s) @ out + linear, a, u, s


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process that has so many devices of its CPU."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return dict(os.environ) | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}


def text_config(folder: Path | None = None, **fields) -> TextConfig:
    """A small Transformer on a few of the embedded stories, whose validation and test are soon over.

    Their file is written into `folder`.
    """
    if folder:
        path = folder / "few.txt"
        path.write_text(END_OF_TEXT.join(stories(40)))
        fields["text"] = str(path)
    sizes: dict[str, Any] = {"vocab": 320, "context": 32, "width": 32, "heads": 4, "batch_size": 8, "warmup": 2}
    return TextConfig(data="text", validation=4, test=4, **sizes | fields)


def quiet(*_):
    """A report of training that says nothing."""


def trained(config, folder):
    """A run that nobody interrupted."""
    train(config, folder, report=quiet)
    return folder


_TEXT_BEYOND_A_PLOT = """
return [...document.querySelectorAll('.plot')].flatMap(plot => {
  const frame = plot.getBoundingClientRect();
  const beyond = box => box.width && (box.left < frame.left || box.right > frame.right);
  const cut = [...plot.querySelectorAll('text')].filter(text => beyond(text.getBoundingClientRect()));
  return cut.map(text => text.textContent);
});
"""


def check_page(browser, terms: int) -> None:
    """Of an open page, at two widths: nothing sticks out, its terms explain themselves to the keyboard, plots download.

    It has `terms` terms or more, and no error in the console.
    """
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    from benchmarks.screenshot import opened, resize

    for width in (1400, 390):
        resize(browser, width, 900)
        opened(browser, browser.current_url)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(_TEXT_BEYOND_A_PLOT) == []
        tip, found = browser.find_element(By.ID, "tip"), browser.find_elements(By.CSS_SELECTOR, ".term")
        assert len(found) >= terms
        for term in found[:: max(1, len(found) // 4)]:
            browser.execute_script("arguments[0].focus()", term)
            assert browser.switch_to.active_element == term
            assert tip.is_displayed()
            box = tip.rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert len(tip.text) > 20
            term.send_keys(Keys.ESCAPE)
            assert not tip.is_displayed()
    glossary = {term.get_attribute("textContent") for term in browser.find_elements(By.CSS_SELECTOR, "#glossary dt")}
    assert glossary == {term.get_attribute("data-term") for term in found}
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(box => box.data && !box.hidden)"
    )
    assert len(browser.find_elements(By.CSS_SELECTOR, "#download-list li")) == len(shown) > 0
    assert "<|endoftext|>" not in browser.find_element(By.TAG_NAME, "main").text
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def wrong(main, args, capsys):
    """The one line that a command answers these arguments with."""
    with pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error
