"""`fast-electra detect`: the tokens of a text that look replaced, marked in colour, or by brackets without colours."""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fast_electra.corpus.pieces import Span
from fast_electra.detect.detector import Corrupted, Token, load_auxiliary, load_discriminator
from fast_electra.settings import UserError

MOST = 2**22  # characters of a text
# The style of each mark, and its brackets without colours. Black on these can be read in light and in dark terminals.
MARKS = {
    "found": ("#000000 on #afd7ff", "[", "]"),
    "missed": ("#000000 on #ffffaf", "{", "}"),
    "accused": ("#000000 on #ffafaf", "<", ">"),
}
# Control characters could move the cursor, or do more. A newline and a tab do no harm.
VISIBLE = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {0x7F: 0x2421}
VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
ALONE = {"": "␣", "\n": "⏎", "\t": "⇥"}  # signs for marked tokens that would be invisible
Part = tuple[str, str]  # of what is printed: a text, and a key of MARKS or ""


def main(
    run: Path,
    texts: Sequence[str],
    threshold: float,
    as_json: bool,
    tokenizer: Path | None,
    sequence_length: int | None,
    auxiliary: Path | None,
    temperature: float | None,
    seed: int,
) -> None:
    """Judge the texts, or standard input if there is none, and print them. The arguments are those of the command.

    Raises:
        UserError: an argument is wrong, a model cannot be loaded, or a text cannot be judged.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold must be a number from 0 to 1, not {threshold:g}")
    if auxiliary is None and temperature is not None:
        raise UserError("--temperature is that of an auxiliary model: name its run with --auxiliary")
    detector = load_discriminator(run, tokenizer, sequence_length)
    draws = None if auxiliary is None else load_auxiliary(auxiliary, detector)
    console, temperature = Console(highlight=False), 1.0 if temperature is None else temperature
    for number, text in enumerate(texts or [_standard_input()], 1):
        value: dict[str, Any] = {"text": text}
        try:
            _check(text)
            text = value["text"] = detector.spelt(text)
            if draws is None:
                tokens = detector.detect(text)
                value["tokens"] = [token._asdict() for token in tokens]
                parts = _detected(text, tokens, threshold)
            else:
                corrupted = detector.corrupt(text, draws, temperature, seed)
                value |= _as_json(corrupted, threshold)
                parts = _corrupted(text, corrupted, temperature, threshold)
        except UserError as error:
            raise UserError(f"text {number}: {error}" if len(texts) > 1 else str(error)) from None
        if as_json:
            print(json.dumps(value))
        else:
            _print([*([("\n", "")] if number > 1 else []), *parts], console)


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("type a text, and end it with Ctrl-D on a line of its own:", file=sys.stderr)
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 (byte {error.start + 1:,}): convert it with iconv") from None


def _check(text: str) -> None:
    if not text.strip():
        raise UserError("the text is empty: give one as an argument or on standard input")
    if len(text) > MOST:
        raise UserError(f"the text has {len(text):,} characters, more than {MOST:,}: give it in parts")


def _print(parts: list[Part], console: Console) -> None:
    if console.color_system in ("256", "truecolor") and not console.no_color:
        styled = [(text, MARKS[mark][0]) if mark else text for text, mark in parts]
        console.print(Text.assemble(*styled), soft_wrap=True)
        return
    brackets = {"": ("", "")} | {mark: ends for mark, (_, *ends) in MARKS.items()}
    print("".join(f"{brackets[mark][0]}{text}{brackets[mark][1]}" for text, mark in parts))


def _parts(text: str, tokens: Sequence[tuple[Span, str, float | None]]) -> Iterator[Part]:
    """Yield the whole text, from each token's span, mark and probability to print.

    The tokens of one character are one part, with the mark of the most suspect one.
    """
    for (start, end), group in groupby(tokens, key=lambda token: token[0]):
        _, mark, probability = max(group, key=lambda token: (token[1] != "", token[2] or 0.0))
        spelt = text[start:end].translate(VISIBLE)
        if not mark:
            yield spelt, ""
            continue
        if word := spelt.lstrip(" "):
            yield spelt.removesuffix(word), ""
        yield ALONE.get(word, word) + ("" if probability is None else f" {probability:.2f}"), mark
        if word == "\n":
            yield "\n", ""


def _detected(text: str, tokens: list[Token], threshold: float) -> list[Part]:
    marked = [(token.span, "found" * (token.probability >= threshold), token.probability) for token in tokens]
    count = sum(bool(mark) for _, mark, _ in marked)
    end = f"\n{count:,} of {len(tokens):,} tokens look replaced (probability of at least {threshold:g})"
    return [*_parts(text, marked), (end, "")]


def _corrupted(text: str, corrupted: Corrupted, temperature: float, threshold: float) -> list[Part]:
    tokens, figures = corrupted.tokens, corrupted.summary(threshold)
    kinds = {(True, True): "found", (True, False): "missed", (False, True): "accused", (False, False): ""}
    before = [(span, "found" * was, None) for span, was in zip(corrupted.spans, corrupted.replaced, strict=True)]
    after = [
        (token.span, kinds[was, token.probability >= threshold], token.probability)
        for token, was in zip(tokens, corrupted.replaced, strict=True)
    ]
    area = "unknown" if figures["auc"] is None else f"{figures['auc']:.3f}"
    counts = f"\n\n{figures['replaced']:,} of {len(tokens):,} tokens replaced, {figures['found']:,} found; "
    return [
        *(("original, ", ""), ("replaced tokens", "found"), ("\n", "")),
        *_parts(text, before),
        *((f"\n\ncorrupted at temperature {temperature:g}, replaced tokens ", ""), ("found", "found"), (" ", "")),
        *(("missed", "missed"), (", original ones ", ""), ("accused", "accused"), ("\n", "")),
        *_parts(corrupted.text, after),
        (f"{counts}{figures['accused']:,} falsely accused; AUC {area}", ""),
    ]


def _as_json(corrupted: Corrupted, threshold: float) -> dict[str, Any]:
    rows = zip(corrupted.tokens, corrupted.replaced, corrupted.spans, strict=True)
    tokens = [token._asdict() | {"replaced": replaced, "original": span} for token, replaced, span in rows]
    return {"corrupted": corrupted.text, "tokens": tokens, "summary": corrupted.summary(threshold)}
