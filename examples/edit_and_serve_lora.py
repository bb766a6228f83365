"""Edit a model, write the edit as a LoRA adapter, and serve the adapter on the unedited model with peft.

    pip install 'factpatch[lora]'
    python examples/edit_and_serve_lora.py

Servers that hold one base model and many adapters load the same directory.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel

from factpatch import Editor, Fact

PROMPT = "The capital of France is"


def main(directory: Path) -> tuple[str, str]:
    """Return what the unedited model says, and what it says with the adapter."""
    editor = Editor("smollm2-135m", method="memit-blue")
    patch = editor.edit([Fact("The capital of {} is", "France", "Rome", target_true="Paris")])
    patch.to_lora(directory)

    editor.undo()
    before = said(editor.model, editor.tokenizer)
    # Nothing of factpatch is needed from here on: a base model, and an adapter.
    served = PeftModel.from_pretrained(editor.model, str(directory))
    return before, said(served, editor.tokenizer)


def said(model: Any, tokenizer: Any) -> str:
    """Return the model's greedy continuation of the prompt."""
    tokens = tokenizer(PROMPT, return_tensors="pt")
    output = model.generate(**tokens, do_sample=False, max_new_tokens=2)
    text: str = tokenizer.decode(output[0, tokens["input_ids"].shape[1] :])
    return text.strip()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        before, after = main(Path(folder, "adapter"))
    print(f"{PROMPT} ... unedited: {before} With the adapter: {after}")
