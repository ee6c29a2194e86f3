"""``edgewright bench``: load on a running server, and what it answered.

A closed loop has so many callers, each of which sends when it has its answer: throughput at a given
concurrency. An open loop sends by a schedule that was fixed beforehand and counts each call's time
from the moment when it was due, so that a server which stalls is charged for every call that had to
wait: without that, the generator coordinates with the server and leaves the worst calls out
("coordinated omission", Gil Tene, "How NOT to Measure Latency"; his wrk2 does it for HTTP).
"""
