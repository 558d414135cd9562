"""One run of atheris, whose inputs are guided by what they reach in our code: TARGET INPUTS SEED FOLDER.

A process of its own, since libFuzzer ends the one that it is in. After each thousand inputs it prints what came of all
until then; an input that raises is left in the folder, and its traceback is printed.
"""

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["crm_relay", "callback_receiver", "amo_webhook", "bitrix_robot", "tomllib"]):
    from tests.fuzz.fuzz import FRESH_AFTER, REPORT, Fuzzing
    from tests.fuzz.targets import TARGETS

_LONGEST = 4096
"""Bytes of what libFuzzer makes; a target makes some of it as large as an input may be."""


def main() -> None:
    """Fuzz until the inputs are used up."""
    name, inputs, seed, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    target, corpus, words = TARGETS[name], folder / "corpus", folder / "words"
    corpus.mkdir()
    for number, sample in enumerate(target.samples):
        (corpus / str(number)).write_bytes(sample)
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words if len(word) < 100)
    words.write_text("".join(f'"{word}"\n' for word in quoted))

    def one(data: bytes) -> None:
        # Once, and without a verdict: what is guided is slower. The slowest are tried again by who started this.
        fuzzing.one(data, measured=1)
        if fuzzing.found.inputs % FRESH_AFTER == 0 or fuzzing.found.inputs == inputs:
            found = json.dumps(astuple(fuzzing.found), default=lambda value: value.decode("latin-1"))
            print(f"{REPORT}{found}", flush=True)
        if fuzzing.found.inputs == inputs:
            os._exit(0)

    with Fuzzing(target) as fuzzing:
        options = [
            f"-seed={seed}",
            f"-dict={words}",
            f"-max_len={_LONGEST}",
            f"-artifact_prefix={folder}/",
            str(corpus),
        ]
        atheris.Setup([sys.argv[0], *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
