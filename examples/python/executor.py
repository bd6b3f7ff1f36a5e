"""An executor for Homeostat: verify, claim, act, report, commit.
Usage: [EXECUTOR_KEY_FILE=key.pem] executor.py TRUSTED_KEYS_FOLDER PREFIX TENANT CLAIMS_FILE PROGRAM"""
import base64, hashlib, json, os, pathlib, sqlite3, subprocess, sys, uuid
from datetime import datetime, timedelta, timezone
from confluent_kafka import Consumer, Producer
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, load_pem_public_key

KEYS, PREFIX, TENANT, CLAIMS, PROGRAM = sys.argv[1:]
ALLOWED = {"restart"}  # what this executor does at all: a command can ask for nothing else
NAMESPACE = uuid.UUID("6f0d8b1e-52c4-5f7a-9a3b-1c647e20d9f1")
PAYLOAD_TYPE = b"https://cloudevents.io/verifiability/dsse/v0.1"
CORE = "ce_id ce_source ce_specversion ce_type content-type ce_dataschema ce_subject ce_time".split()
EXTENSIONS = b"partitionkey,expirytime,correlationid,causationid,sequence,tenant,mode"
now = lambda: datetime.now(timezone.utc)
sha256 = lambda data: hashlib.sha256(data).digest()
key_id = lambda key: sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw))[:8].hex()
SIGNER = (path := os.environ.get("EXECUTOR_KEY_FILE")) and load_pem_private_key(pathlib.Path(path).read_bytes(), None)

def signed(headers, data, extensions):  # the CloudEvents extension "Verifiable CloudEvents with DSSE"
    parts = [headers.get(name, b"") for name in CORE] + [data]
    parts += [part for name in extensions.decode().split(",") for part in (name.encode(), headers.get("ce_" + name, b""))]
    payload = sha256(b"".join(map(sha256, parts)))
    return payload, b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE, len(payload), payload)

def unverified(headers, data, keys):
    if "ce_dssematerial" not in headers or headers.get("ce_signedextattrs") != EXTENSIONS: return "unsigned, or only in part"
    for signature in json.loads(base64.b64decode(headers["ce_dssematerial"]))["signatures"]:
        if key := keys.get(signature["keyid"]): return key.verify(base64.b64decode(signature["sig"]), signed(headers, data, EXTENSIONS)[1])
    return "signed by a key that is not trusted"

def sign(headers, data):  # an outcome counts where its executor's key is listed
    payload, over = signed(headers, data, b"correlationid,tenant")
    signature = {"keyid": key_id(SIGNER.public_key()), "sig": base64.b64encode(SIGNER.sign(over)).decode()}
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE.decode(), "signatures": [signature]}
    return headers | {"ce_signedextattrs": b"correlationid,tenant", "ce_dssematerial": base64.b64encode(json.dumps(envelope).encode())}

def refusal(key, headers, action):
    target, deadlines = action["target"], (headers["ce_expirytime"].decode(), action["timing"]["start_deadline"])
    if not key == headers["ce_subject"] == target["key"].encode() or headers["ce_id"].decode() != action["action_id"]:
        return "rejected", 412, "record, envelope and data speak of different things"
    if target["tenant"] != TENANT or action["action"]["type"] not in ALLOWED or not target["name"]:
        return "rejected", 403, "not in this executor's allow-list"
    if now() + timedelta(seconds=1) > min(datetime.fromisoformat(at.replace("Z", "+00:00")) for at in deadlines):
        return "expired", 410, "must not start any more"

def perform(action, claims, payload):
    with claims:  # durable before anything is done: what was begun and not finished is never guessed
        claims.execute("INSERT INTO claims VALUES (?, ?, NULL)", (action["action_id"], payload))
    try:
        environment, timeout_ms = os.environ | {"HOMEOSTAT_ACTION_ID": action["action_id"]}, action["timing"]["exec_timeout_ms"]
        code = subprocess.run([PROGRAM, action["target"]["name"]], env=environment, timeout=timeout_ms / 1000).returncode
        outcome = ("failed", 500, f"exit code {code}") if code else ("succeeded", 200, "")
    except (subprocess.TimeoutExpired, OSError) as error: outcome = "unknown", 504, f"no telling how far it came: {error}"
    with claims: claims.execute("UPDATE claims SET outcome = ? WHERE id = ?", (json.dumps(outcome), action["action_id"]))
    return outcome

def outcome_of(key, headers, data, action, payload, keys, claims):
    try: problem = unverified(headers, data, keys)
    except (InvalidSignature, ValueError, KeyError, TypeError):
        problem = "the signature does not fit: envelope or data were changed, or another key signed"
    if problem: return "rejected", 412, problem
    known = claims.execute("SELECT payload, outcome FROM claims WHERE id = ?", (action["action_id"],)).fetchone()
    if known and known[0] != payload: return "rejected", 422, "the id was used before with other data"
    if known: return json.loads(known[1]) if known[1] else ("unknown", 504, "begun before this executor was restarted")
    return refusal(key, headers, action) or perform(action, claims, payload)

def report(producer, action, payload, status, code, error):
    at, ids = now().isoformat(timespec="milliseconds")[:23] + "Z", [action["action_id"], str(action["attempt"]), status]
    event_id = uuid.uuid5(NAMESPACE, "outcome" + "".join(f"\x1f{len(part)}:{part}" for part in ids))
    outcome = {"executor": {"id": "python", "version": "1"}, "status": status, "code": code, "retryable": False,
               "at": at, "payload_sha256": payload} | ({"error": error} if error else {})
    outcome |= {name: action[name] for name in ("action_id", "incident_id", "attempt")}
    headers = {"ce_specversion": "1.0", "ce_id": str(event_id), "ce_type": f"dev.homeostat.outcome.{status}.v1",
               "ce_source": f"/homeostat/{TENANT}/executor/python", "ce_subject": action["target"]["key"], "ce_time": at,
               "ce_correlationid": action["incident_id"], "ce_tenant": TENANT, "content-type": "application/json"}
    headers, data = {name: value.encode() for name, value in headers.items()}, json.dumps(outcome).encode()
    headers = list((sign(headers, data) if SIGNER else headers).items())
    producer.produce(PREFIX + "outcomes", data, action["target"]["key"], headers=headers)
    if producer.flush(30): sys.exit("the broker does not take the outcome; the command comes again after a restart")

claims, kafka = sqlite3.connect(CLAIMS), {"bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP", "127.0.0.1:9092")}
keys = {key_id(key): key for key in (load_pem_public_key(path.read_bytes()) for path in pathlib.Path(KEYS).glob("*.pem"))}
claims.execute("CREATE TABLE IF NOT EXISTS claims (id TEXT PRIMARY KEY, payload TEXT, outcome TEXT)")
producer = Producer(kafka | {"enable.idempotence": True})
consumer = Consumer(kafka | {"group.id": PREFIX + "executor-python", "enable.auto.commit": False,
                             "auto.offset.reset": "earliest", "isolation.level": "read_committed"})
consumer.subscribe([PREFIX + "actions"])
while True:
    record = consumer.poll(1.0)
    if record is None or record.error(): continue
    headers, data = dict(record.headers() or []), record.value() or b""
    try:
        if headers.get("ce_type") == b"dev.homeostat.action.requested.v1" and headers.get("ce_mode") == b"live":
            action, payload = json.loads(data), hashlib.sha256(data).hexdigest()
            report(producer, action, payload, *outcome_of(record.key(), headers, data, action, payload, keys, claims))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"offset {record.offset()} is no command: {error!r}", file=sys.stderr)
    consumer.commit(record, asynchronous=False)
