"""What terms mean, for newcomers; the page shows it where a term is pointed at or reached with the keyboard."""

from __future__ import annotations

from collections.abc import Mapping

TERMS: Mapping[str, str] = {
    "subject": "What the fact is about. The edit is made where the model reads the subject's last word.",
    "prompt": "A text that ends right before the answer. Write {} or the subject's name where the subject goes.",
    "new answer": "What the model is to say from now on.",
    "old answer": "What the model says today, if you know it. It is what the new answer is compared with.",
    "learned": "The edited model's own answer to the prompt holds the new answer.",
    "not learned": "The edited model's own answer to the prompt does not hold the new answer.",
    "free answer": "What the model says by itself: always the likeliest next word, up to the end of a sentence.",
    "probability": "How likely the model finds this whole answer after the prompt, from 0 to 100 %.",
    "paraphrases": "The same question in other words. An edit should reach them too.",
    "neighbors": "Questions about something else, whose answers should stay as they are.",
    "batch": "Facts that were taught together, in one edit.",
    "layer": "One of the model's stages, counted from 0. An edit changes a matrix in a few of them.",
    "method": "How the change of the weights is found. All of them spare ordinary text, as far as they can.",
    "preset": "Settings that were found to work for this model, with their source.",
    "recipe": "All that an edit depends on besides the facts: method, layers, settings, seed.",
    "perplexity": "How surprised the model is by ordinary text; lower is better. An edit should hardly raise it.",
    "drift": "How far the model's inner states move for prompts that were not edited, relative to their size.",
    "capability": "Questions that have nothing to do with the edits: how many the model still answers as it should.",
    "patch": "A small file with the change of the weights. It is applied to the original model, and taken off again.",
    "LoRA": "The same change as an adapter, which engines such as vLLM or peft load beside the original model.",
    "GGUF": "The file format of llama.cpp and Ollama. The adapter is loaded beside the original, quantized model.",
    "trace": "Causal tracing: where the model keeps a fact. The subject is garbled, then one inner state is put right "
    "again; strong colors bring the answer back.",
    "session": "All your edits in one folder, which the command line opens too.",
    "queue": "The models run one job at a time. Jobs of others that came first are done first.",
}

FORMS: Mapping[str, str] = {
    "prompt": "Continuing the prompt",
    "question": "Asked a question",
    "chat": "Asked in a chat",
    "chat_system": "In a chat with another system text",
    "chat_later": "Later in a chat",
}
"""How a model is asked, by the names of `factpatch.evaluation.readings.FORMS`."""
