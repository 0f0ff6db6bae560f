"""Run the fuzzer over the seeds and its earlier findings, for a number of seconds or runs.

The exit code is 0 if it found nothing. An input that breaks the reader is written into the corpus
folder as `crash-…`, `oom-…` or `timeout-…`. Its path is in the output, and
`python -m tests.fuzz PATH` reads it again.
"""

import argparse
import os
import resource
import sys
from pathlib import Path

# Small limits, so that inputs of a few kB reach them. Before the settings are read.
os.environ |= {"XALEN_MAX_LINE_BYTES": "3000", "XALEN_MAX_BATCH_LINES": "12"}
CORPUS = Path(".fuzz")
MOST_BYTES = 8_192
# Above the memory that the fuzzer starts with.
MEMORY_MB = 700
SECONDS_PER_INPUT = 20


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("inputs", nargs="*", type=Path, help="read these files and nothing else")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument(
        "--corpus",
        type=Path,
        default=CORPUS,
        help="where inputs are kept that reached something new",
    )
    chosen = options.parse_args()
    if chosen.inputs:
        replay(chosen.inputs)
        return
    try:
        import atheris
    except ImportError:
        # No wheels for this platform: only read the known inputs.
        replay(sorted(write_seeds(chosen.corpus).iterdir()))
        return
    # Before anything else has imported it.
    with atheris.instrument_imports(include=["xalen_batch", "tests.fuzz.reader", "json"]):
        from tests.fuzz.reader import check
    seeds = write_seeds(chosen.corpus)
    found = chosen.corpus / "found"
    found.mkdir(exist_ok=True)
    # libFuzzer looks at the peak of the process, and Linux hands down that of the parent: pytest's.
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    limits = [
        f"-max_len={MOST_BYTES}",
        f"-rss_limit_mb={peak_mb + MEMORY_MB}",
        f"-timeout={SECONDS_PER_INPUT}",
        f"-max_total_time={chosen.seconds}",
    ]
    places = [
        f"-artifact_prefix={chosen.corpus}/",
        f"-dict={write_words(chosen.corpus)}",
        str(found),
        str(seeds),
    ]
    atheris.Setup(
        [sys.argv[0], *limits, f"-seed={chosen.seed}", "-print_final_stats=1", *places], check
    )
    atheris.Fuzz()


def replay(paths: list[Path]) -> None:
    from tests.fuzz.reader import check

    for path in paths:
        sys.stderr.write(f"{path}\n")
        check(path.read_bytes())
    sys.stderr.write(f"{len(paths)} inputs read, nothing found\n")


def write_seeds(corpus: Path) -> Path:
    """The hostile files that are short enough, and good ones."""
    from tests.factories import chat_line, jsonl, rerank_line
    from tests.hostile.files import FILES

    folder = corpus / "seeds"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [case.content for case in FILES if len(case.content) <= MOST_BYTES]
    seeds += [
        jsonl([chat_line("a"), chat_line("b", "x" * 900, max_tokens=5, stop=["x"])]),
        jsonl([rerank_line("a"), rerank_line("b", top_n=1)]),
    ]
    for number, content in enumerate(seeds):
        (folder / f"{number:03}").write_bytes(content)
    return folder


def write_words(corpus: Path) -> Path:
    """Words that random mutation would find only after a long time."""
    words = (
        "custom_id method POST url /v1/chat/completions /v1/rerank body model mistral-small-3-1"
        " bge-reranker-v2 messages role user content type text"
    )
    words += (
        " assistant tool tool_calls query documents top_n stream n max_tokens temperature seed stop"
        " response_format json_object null true 1e400 NaN"
    )
    escaped = [rf'"\"{word}\":"' for word in words.split()] + [
        f'"{word}"' for word in words.split()
    ]
    escaped += [
        r'"\\u0000"',
        r'"\\ud83d"',
        r'"\xef\xbb\xbf"',
        r'"\xc0\xaf"',
        r'"\x0d\x0a"',
        r'"\x00"',
        r'"9999999999999999999999"',
    ]
    path = corpus / "words"
    path.write_text("\n".join(escaped) + "\n", "ascii")
    return path


if __name__ == "__main__":
    main()
