"""No server: what tokenizer and session give in a loop, to one thread and to one a core."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence

from benchmarks.servers.classifier import Classifier
from benchmarks.servers.job import ServeJob

BATCHES = (1, 16)


def texts_per_second(
    classifiers: Sequence[Classifier], texts: Sequence[str], batch: int, seconds: float
) -> float:
    """Of one thread a classifier, after a tenth of the seconds to warm up."""
    rates: list[float] = []
    begin = time.perf_counter() + seconds / 10

    def work(classify: Classifier) -> None:
        done = turn = 0
        while (now := time.perf_counter()) < begin + seconds:
            at = turn * batch % (len(texts) - batch + 1)
            classify(texts[at : at + batch])
            turn += 1
            done += batch if now >= begin else 0
        rates.append(done / (time.perf_counter() - begin))

    threads = [threading.Thread(target=work, args=(each,)) for each in classifiers]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return sum(rates)


def main() -> None:
    """Print texts a second by words, threads and batch."""
    job = ServeJob.read()
    classifiers = [Classifier(job) for _ in range(job.workers)]
    found = {
        words: {
            f"{threads} x batch {batch}": texts_per_second(
                classifiers[:threads], texts, batch, job.extra["seconds"]
            )
            for threads in sorted({1, job.workers})
            for batch in BATCHES
        }
        for words, texts in job.extra["texts"].items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
