"""Run inside Axolotl's own environment: how it tokenises and labels rows, as JSON.

Arguments: a tokenizer's folder, and a JSON file of cases: `template`, `row`, `role` and `content`, the names of a
message's fields.
"""

import json
import sys

from axolotl.prompt_strategies.chat_template import load
from axolotl.utils.dict import DictDefault
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found: list[list[list[int]] | None] = []
with open(sys.argv[2], encoding="utf-8") as file:
    for case in json.load(file):
        entry = {"message_property_mappings": {"role": case["role"], "content": case["content"]}}
        config = DictDefault({"chat_template": case["template"], "sequence_len": 4096})
        try:
            encoded = load(tokenizer, config, DictDefault(entry)).tokenize_prompt(case["row"])
            found.append([list(encoded["input_ids"]), list(encoded["labels"])])
        except Exception:
            found.append(None)
print(json.dumps(found), file=sys.stderr)
