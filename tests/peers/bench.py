"""Homeostat beside Flink SQL, Kafka Streams, the Python engines and a hand-written C++ program: same topic, same broker, same machine.

usage: bench.py PEERS HOMEOSTAT [--quick]

PEERS is the folder with the peers' own programs (run.sh, measure.py, check.py); WORK, outside it, takes what is built and the
broker's data. Every engine reads the same 10 M JSON records from the earliest offset; its output is read back and checked in full.
Rates count from the start of the job (of Homeostat: of the process, topics and group included) to the last output. A warm rate is
that of 10 M records less what a run over 1 M takes. Prints one table, and as its last line one JSON object of ratios, ours over
theirs, each of medians of this run.
"""
import json, os, statistics, subprocess, sys

PEERS, HOMEOSTAT = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
QUICK = "--quick" in sys.argv[3:]
HERE = os.path.dirname(os.path.abspath(__file__))
WORK = os.path.abspath(os.environ["WORK"])
PORT, CONTROLLER_PORT = os.environ["PORT"], os.environ["CPORT"]
N = int(os.environ.get("N", 10_000_000))
SMALL = N // 10
# What the folder's README says of complete runs over 10 M records: rows, counts, averages, maxima, minima.
REFERENCE = {
    "q1": (30_000, 10_000_000, 1_500_155.156, 2_990_958.602, 9_083.578),
    "q2": (329_500, 600_000_000, 16_476_083.264, 32_917_636.140, 0),
    "q3": (300_000, 10_000_000, 15_001_957.510, 29_098_831.790, 900_223.013),
}
SPAN_MS = {"m_json": 600_000, "m_json_1m": 60_000}
RECORDS = {"m_json": N, "m_json_1m": SMALL}
ENV = dict(
    os.environ, WORK=WORK, BROKERS=f"127.0.0.1:{PORT}", PORT=PORT, CPORT=CONTROLLER_PORT, N=str(N),
    RESULTS=f"{WORK}/results.jsonl", KLIB=f"{WORK}/kafka/lib", FLINK_BUILD=f"{WORK}/flink", KS_BUILD=f"{WORK}/kstreams",
)
PYTHON = f"{WORK}/venv/bin/python"


def run(*command, **env):
    return subprocess.run(command, cwd=PEERS, env=dict(ENV, **env), stdout=subprocess.PIPE, text=True)


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def measure(name, *command, **env):
    """One run under the peers' own measure.py: seconds of the job, CPU seconds, peak memory."""
    with open(f"{WORK}/kafka/pid") as pid:
        done = run(PYTHON, "python/measure.py", name, "--", *command, KAFKA_PID=pid.read().strip(), **env)
    found = last_json(done.stdout)
    if found["rc"] != 0:
        raise SystemExit(f"{name} ended with exit code {found['rc']}: {found.get('tail', '')}")
    said = found.get("report", {})
    seconds = said.get("data_s") or said.get("inner_s") or said.get("job_s") or found["wall_s"]
    if "job_s_incl_idle" in said:
        seconds = said["job_s_incl_idle"] - said["idle_s"]
    # Of ours the process alone, of which the kernel tells the exact peak; the peers' are sampled over their process trees.
    cpu_s = said.get("process_cpu_s") or found["user_s"] + found["sys_s"]
    disturbed = found["other_cpu_s"] > 0.15 * found["wall_s"]
    return {"s": seconds, "cpu_s": cpu_s, "mb": said.get("process_mb") or found["rss_mb"], "disturbed": disturbed}


def fresh(topic):
    run(PYTHON, "python/topic.py", "recreate", topic, "4")


def check(topic, query, source):
    """What the output topic holds: (verdict, records that are in no window)."""
    found = last_json(run(PYTHON, "python/check.py", topic, query, str(SPAN_MS[source])).stdout)
    times = 60 if query == "q2" else 1
    dropped = RECORDS[source] * times - found["sum_count"]
    equal = dropped == 0 and found["dup"] == 0
    if equal and source == "m_json" and N == 10_000_000:
        sums = (found["rows"], found["sum_count"], found["sum_avg"], found["sum_max"], found["sum_min"])
        equal = all(abs(ours - theirs) <= 1e-9 * abs(theirs) + 0.002 for ours, theirs in zip(sums, REFERENCE[query]))
    verdict = "equal" if equal else f"{100 * dropped / (RECORDS[source] * times):.1f} % lost" if dropped else "differs"
    return verdict, dropped


class Table:
    def __init__(self):
        self.rows = {}

    def add(self, system, query, source, figures, output):
        self.rows.setdefault((system, query, source), []).append({**figures, "output": output})
        rate = RECORDS[source] / figures["s"]
        print(f"  {system} {query} {source}: {figures['s']:.2f} s, {rate / 1e3:,.0f} k/s, {output}", file=sys.stderr, flush=True)

    def calm(self, system, query, source="m_json"):
        runs = self.rows.get((system, query, source), [])
        return [run for run in runs if not run["disturbed"]] or runs

    def median(self, field, *key):
        return statistics.median(run[field] for run in self.calm(*key))

    def cold(self, system, query):
        return N / self.median("s", system, query)

    def warm(self, system, query):
        seconds = self.median("s", system, query) - self.median("s", system, query, "m_json_1m")
        return (N - SMALL) / max(seconds, 1e-3)

    def print(self):
        print(f"\n{'system':<42}{'query':<6}{'records':>8}{'runs':>5}{'job s':>8}{'records/s':>12}{'CPU µs':>8}{'MB':>7}  output")
        for system, query, source in self.rows:
            seconds = self.median("s", system, query, source)
            cpu_us = self.median("cpu_s", system, query, source) / RECORDS[source] * 1e6
            runs = self.calm(system, query, source)
            outputs = sorted({run["output"] for run in self.rows[system, query, source]})
            mark = " (disturbed)" if runs[0]["disturbed"] else ""
            print(
                f"{system:<42}{query:<6}{RECORDS[source] / 1e6:>6.1f} M{len(runs):>5}{seconds:>8.2f}{RECORDS[source] / seconds:>12,.0f}"
                f"{cpu_us:>8.2f}{max(run['mb'] for run in runs):>7.0f}  {', '.join(outputs)}{mark}"
            )


def homeostat(table, query, source="m_json"):
    out = f"o_homeostat_{query}"
    fresh(out)
    figures = measure(f"homeostat-{query}", PYTHON, f"{HERE}/homeostat.py", HOMEOSTAT, query, source, out)
    output, dropped = check(out, query, source)
    table.add("Homeostat, exactly-once", query, source, figures, output)
    return dropped


def flink(table, query, mode="eos", backend="hashmap", source="m_json"):
    out = f"o_flink_{query}"
    fresh(out)
    figures = measure(f"flink-{query}-{mode}", "flink/run.sh", source, out, query, mode, backend)
    table.add(f"Flink SQL, {mode}, {backend}", query, source, figures, check(out, query, source)[0])


def kafka_streams(table, query, guarantee="exactly_once_v2", variant="papi", grace_ms=2000, source="m_json"):
    out = f"o_kstreams_{query}"
    fresh(out)
    expected = RECORDS[source] * (60 if query == "q2" else 1)
    figures = measure(
        f"ks-{query}", "kstreams/run.sh", source, out, query, guarantee, variant, str(grace_ms), str(expected),
        SPAN_MS=str(SPAN_MS[source]),
    )
    table.add(f"Kafka Streams, {guarantee}, {variant}", query, source, figures, check(out, query, source)[0])


def native(table, query, threads):
    figures = measure(f"native-{query}-{threads}", f"{WORK}/producer/raw", ENV["BROKERS"], "m_json", query, str(threads))
    name = "librdkafka, payload untouched" if query == "raw" else "C++ (librdkafka, simdjson)"
    table.add(f"{name}, {threads} threads", query, "m_json", figures, "-")


def python_engines(table):
    engines = [
        ("Bytewax, 2 processes", [PYTHON, "python/bw_run.py", "2"], {}),
        ("Pathway, 2 threads", [f"{WORK}/venv/bin/pathway", "spawn", "--threads", "2", PYTHON, "python/pwy.py"], {"PATHWAY_THREADS": "2"}),
        ("Quix Streams, 2 processes", [PYTHON, "python/qx_run.py", "2"], {}),
    ]
    for name, command, env in engines:
        out = "o_python"
        fresh(out)
        figures = measure(name, *command, Q="q1", IN="m_json_1m", OUT_TOPIC=out, **env)
        table.add(name, "q1", "m_json_1m", figures, check(out, "q1", "m_json_1m")[0])


def round_of_all(table, first):
    """What the ratios need, each engine in turn, so that a slow minute of the machine meets them all."""
    dropped = 0
    for source in ("m_json", "m_json_1m"):
        dropped += homeostat(table, "q1", source)
        flink(table, "q1", source=source)
        kafka_streams(table, "q1", source=source)
    dropped += homeostat(table, "q1")
    native(table, "q1", 2)
    dropped += homeostat(table, "q3")
    flink(table, "q3", backend="rocksdb")
    kafka_streams(table, "q3")
    dropped += homeostat(table, "q2")
    if first:
        native(table, "raw", 2)
        flink(table, "q2")
    return dropped


def main():
    run_sh = subprocess.run([f"{PEERS}/run.sh", "setup"], env=ENV, stdout=sys.stderr)
    if run_sh.returncode != 0:
        raise SystemExit("the peers could not be set up; see above")
    try:
        subprocess.run([f"{PEERS}/run.sh", "data"], env=ENV, stdout=sys.stderr, check=True)
        table, dropped = Table(), 0
        for number in range(1 if QUICK else 3):
            dropped += round_of_all(table, number == 0)
        for _ in range(2 if QUICK else 0):
            dropped += homeostat(table, "q1")
            native(table, "q1", 2)
        if not QUICK:
            kafka_streams(table, "q1", variant="dsl", grace_ms=120_000)
            kafka_streams(table, "q2", guarantee="at_least_once", source="m_json_1m")
            python_engines(table)
    finally:
        subprocess.run([f"{PEERS}/kafka.sh", "stop"], env=ENV, stdout=sys.stderr)
    table.print()
    ours, fl, ks = "Homeostat, exactly-once", "Flink SQL, eos, hashmap", "Kafka Streams, exactly_once_v2, papi"
    print(json.dumps({
        "q1_flink_cold": round(table.cold(ours, "q1") / table.cold(fl, "q1"), 2),
        "q1_flink_warm": round(table.warm(ours, "q1") / table.warm(fl, "q1"), 2),
        "q1_kstreams_cold": round(table.cold(ours, "q1") / table.cold(ks, "q1"), 2),
        "q1_kstreams_warm": round(table.warm(ours, "q1") / table.warm(ks, "q1"), 2),
        "q3_flink_cold": round(table.cold(ours, "q3") / table.cold("Flink SQL, eos, rocksdb", "q3"), 2),
        "q3_kstreams_cold": round(table.cold(ours, "q3") / table.cold(ks, "q3"), 2),
        "q1_cpp": round(table.cold(ours, "q1") / table.cold("C++ (librdkafka, simdjson), 2 threads", "q1"), 2),
        "q1_cpu_us": round(table.median("cpu_s", ours, "q1") / N * 1e6, 3),
        "q1_rss_mb": round(max(run["mb"] for run in table.calm(ours, "q1"))),
        "q2_q1": round(table.cold(ours, "q2") / table.cold(ours, "q1"), 2),
        "dropped": dropped,
    }))


main()
