"""One `homeostat run` over a topic, from the start of the process to its last output: homeostat.py PROGRAM q1|q2|q3 IN OUT

Default settings, a fleet of its own, the query as an operator writes it. Ends when every record is committed and the output topic has
stood still for two seconds; prints one JSON object. Looks at offsets only: reading the output is check.py's."""
import json, os, resource, signal, subprocess, sys, tempfile, time
from confluent_kafka import Consumer, KafkaException, TopicPartition

PROGRAM, QUERY, IN, OUT = sys.argv[1:5]
BROKERS = os.environ["BROKERS"]
QUIET_S, PATIENCE_S, LOOK_S = 2.0, 180.0, 0.025
KEYS = "service, instance, name" if QUERY == "q3" else "service, name"
WINDOW = (
    "HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '60' SECOND)"
    if QUERY == "q2"
    else "TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND)"
)
LEAST = "" if QUERY == "q2" else ", min(value) AS mn"
PIPELINE = f"""
CREATE SOURCE app (service STRING, instance STRING, name STRING, value DOUBLE, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND)
WITH (topic = '{IN}', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW load AS
SELECT {KEYS}, window_end AS we, count(*) AS n, avg(value) AS av, max(value) AS mx{LEAST}
FROM {WINDOW}
GROUP BY {KEYS}, window_start, window_end;

CREATE SINK load_out FROM load WITH (topic = '{OUT}');
"""

PREFIX = f"bench-{time.time_ns()}."
# Of the group whose offsets it looks up; it never joins.
watcher = Consumer({"bootstrap.servers": BROKERS, "group.id": f"{PREFIX}aggregate", "isolation.level": "read_committed"})
outputs = [TopicPartition(OUT, partition) for partition in watcher.list_topics(OUT).topics[OUT].partitions]
inputs = [TopicPartition(IN, partition) for partition in watcher.list_topics(IN).topics[IN].partitions]
total = sum(watcher.get_watermark_offsets(partition)[1] for partition in inputs)


def written():
    while True:
        try:
            return sum(watcher.get_watermark_offsets(partition)[1] for partition in outputs)
        except KafkaException:  # a topic just made has no leader yet
            time.sleep(LOOK_S)


def committed():
    try:
        return sum(max(partition.offset, 0) for partition in watcher.committed(inputs, timeout=1.0))
    except KafkaException:  # the group does not exist yet
        return 0


with tempfile.TemporaryDirectory() as folder:
    os.makedirs(f"{folder}/pipelines/load")
    with open(f"{folder}/pipelines/load/pipeline.sql", "w") as pipeline:
        pipeline.write(PIPELINE)
    env = dict(os.environ, KAFKA_BOOTSTRAP=BROKERS, HOMEOSTAT__TOPICS__PREFIX=PREFIX)
    seen = written()
    with open(f"{folder}/log", "w+") as log:
        began = time.monotonic()
        process = subprocess.Popen([PROGRAM, "run", "--pipelines", "pipelines"], cwd=folder, env=env, stdout=log, stderr=log)
        changed, drained = began, None
        try:
            while drained is None or time.monotonic() - max(changed, drained) < QUIET_S:
                time.sleep(LOOK_S)
                now = time.monotonic()
                found = written()
                if found != seen:
                    seen, changed = found, now
                if drained is None and committed() >= total:
                    drained = now
                if process.poll() is not None or now - began > PATIENCE_S:
                    log.seek(0)
                    sys.exit(f"homeostat did not finish:\n{log.read()}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
report = json.dumps({
    "job_s": round(changed - began, 3),
    "drained_s": round(drained - began, 3),
    "process_cpu_s": round(used.ru_utime + used.ru_stime, 3),
    "process_mb": round(used.ru_maxrss / 1024),
})
print(report, flush=True)
# The watcher's clients are not taken down in order at the interpreter's end, which was seen to crash.
os._exit(0)
