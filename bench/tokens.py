"""How near the estimate of tokens is to the exact count, and how fast both are: ``python -m bench.tokens``.

Ratios of one run, on the texts of the tests; the fastest of some rounds, taken in turn, stands for each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from bpe_openai import _bindings  # type: ignore[import-untyped]  # it has no types
from tests.texts import ENGLISH, OTHER

from cloister.model import Item
from cloister.window import Estimate, Exact, fit

ROUNDS, TIMES = 15, 100


def seconds(*calls: Callable[[], object]) -> list[float]:
    """Time each call; take turns, so that a busy machine is busy for all of them."""
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(TIMES):
                call()
            best[index] = min(best[index], (time.perf_counter() - start) / TIMES)
    return best


def main() -> None:
    estimate, exact = Estimate(), [Exact("o200k_base"), Exact("cl100k_base")]

    print(f"{'estimate / exact':20} {'min':>6} {'median':>7} {'max':>6}   (both vocabularies, each text)")
    for kind, texts in {**ENGLISH, **OTHER}.items():
        ratios = [estimate.count(text) / counter.count(text) for text in texts for counter in exact]
        print(f"{kind:20} {min(ratios):6.2f} {statistics.median(ratios):7.2f} {max(ratios):6.2f}")

    print(f"\n{'time / native count':20} {'exact':>6} {'estimate':>9} {'native, µs':>11}   (600 characters)")
    for kind, texts in {**ENGLISH, **OTHER}.items():
        text = (" ".join(texts) * 600)[:600]
        for counter in exact:
            native = _bindings.tokenizer_for_encoding(counter.name).count
            base, ours, guess = seconds(
                lambda native=native, text=text: native(text),  # type: ignore[misc]
                lambda counter=counter, text=text: counter.count(text),  # type: ignore[misc]
                lambda text=text: estimate.count(text),  # type: ignore[misc]
            )
            print(f"{kind:20} {ours / base:6.2f} {guess / base:9.2f} {base * 1e6:11.1f}   {counter.name}")

    history = [Item(("user", "assistant")[i % 2], "x" * 300, tokens=80, counter=estimate.name) for i in range(40)]
    question = [Item("user", "And then?", tokens=10, counter=estimate.name)]
    (took,) = seconds(lambda: fit(history, question, 100_000, counter=estimate))
    print(f"\nfit of 40 items: {took * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
