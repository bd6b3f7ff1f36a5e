// An executor for Homeostat: verify, claim, act, report, commit. Not as gofmt would have it: it fits on a page.
// Usage: [EXECUTOR_KEY_FILE=key.pem] executor TRUSTED_KEYS_FOLDER PREFIX TENANT CLAIMS_FOLDER PROGRAM
package main

import ("crypto/ed25519"; "crypto/sha1"; "crypto/sha256"; "crypto/x509"; "encoding/base64"; "encoding/json"; "encoding/pem"
	"cmp"; "context"; "fmt"; "os"; "os/exec"; "path/filepath"; "strings"; "time"; "github.com/twmb/franz-go/pkg/kgo")

const namespace, payloadType = "\x6f\x0d\x8b\x1e\x52\xc4\x5f\x7a\x9a\x3b\x1c\x64\x7e\x20\xd9\xf1", "https://cloudevents.io/verifiability/dsse/v0.1"
const core, extensions = "ce_id ce_source ce_specversion ce_type content-type ce_dataschema ce_subject ce_time", "partitionkey,expirytime,correlationid,causationid,sequence,tenant,mode"
var prefix, tenant, claims, program = os.Args[2], os.Args[3], os.Args[4], os.Args[5]
type said struct { Status string; Code int; Error string }
type command struct {
	ID string `json:"action_id"`; Incident string `json:"incident_id"`; Attempt int
	Action struct { Type string }; Target struct { Key, Name, Tenant string }
	Timing struct { StartDeadline time.Time `json:"start_deadline"`; ExecTimeoutMs time.Duration `json:"exec_timeout_ms"` }
}
func must[T any](value T, err error) T { if err != nil { panic(err) }; return value }
func keyID(key ed25519.PublicKey) string { return fmt.Sprintf("%.8x", sha256.Sum256(key)) }
func pemOf(path string) []byte { block, _ := pem.Decode(must(os.ReadFile(path))); return block.Bytes }
func sha(text string) string { digest := sha256.Sum256([]byte(text)); return string(digest[:]) }
// signed is what a signature is over, by the CloudEvents extension "Verifiable CloudEvents with DSSE".
func signed(headers map[string]string, data, extensions string) (payload []byte, over []byte) {
	digests := ""; for _, name := range strings.Fields(core) { digests += sha(headers[name]) }
	digests += sha(data); for _, name := range strings.Split(extensions, ",") { digests += sha(name) + sha(headers["ce_"+name]) }
	return []byte(sha(digests)), []byte(fmt.Sprintf("DSSEv1 %d %s 32 %s", len(payloadType), payloadType, sha(digests)))
}
func trusted(headers map[string]string, data string, keys map[string]ed25519.PublicKey) bool {
	var envelope struct { Signatures []struct { KeyID string; Sig []byte } }
	material, _ := base64.StdEncoding.DecodeString(headers["ce_dssematerial"])
	if json.Unmarshal(material, &envelope) != nil || headers["ce_signedextattrs"] != extensions { return false }
	_, over := signed(headers, data, extensions); for _, signature := range envelope.Signatures { if key := keys[signature.KeyID]; key != nil { return ed25519.Verify(key, over, signature.Sig) } }
	return false
}
// sign makes an outcome count where its executor's key is listed.
func sign(headers map[string]string, data string, key ed25519.PrivateKey) {
	headers["ce_signedextattrs"] = "correlationid,causationid,tenant"; payload, over := signed(headers, data, headers["ce_signedextattrs"])
	signature := map[string]any{"keyid": keyID(key.Public().(ed25519.PublicKey)), "sig": ed25519.Sign(key, over)}
	envelope := map[string]any{"payload": payload, "payloadType": payloadType, "signatures": []any{signature}}
	headers["ce_dssematerial"] = base64.StdEncoding.EncodeToString(must(json.Marshal(envelope)))
}
// keep is durable when it returns; a line that a crash cut short does not count.
func keep(id string, line any) {
	file := must(os.OpenFile(filepath.Join(claims, id), os.O_CREATE|os.O_APPEND|os.O_WRONLY|os.O_SYNC, 0o600))
	must(0, json.NewEncoder(file).Encode(line)); must(0, file.Close())
}
// answer says how a verified command ended: what was said before is said again, and what was begun is never guessed.
func answer(headers map[string]string, key string, c command, payload string) said {
	if key != c.Target.Key || headers["ce_subject"] != key || headers["ce_id"] != c.ID || filepath.Base(c.ID) != c.ID { return said{"rejected", 412, "record, envelope and data differ"} }
	if file, err := os.Open(filepath.Join(claims, c.ID)); err == nil {
		defer file.Close(); lines, begun, ended := json.NewDecoder(file), "", said{}
		if lines.Decode(&begun) == nil && begun != payload { return said{"rejected", 422, "the id was used before with other data"} }
		if lines.Decode(&ended) == nil { return ended }
		return said{"unknown", 504, "begun before this executor was restarted"}
	}
	if c.Target.Tenant != tenant || c.Action.Type != "restart" || c.Target.Name == "" { return said{"rejected", 403, "not in this executor's allow-list"} }
	if time.Now().Add(time.Second).After(c.Timing.StartDeadline) { return said{"expired", 410, "must not start any more"} }
	keep(c.ID, payload)
	ctx, cancel := context.WithTimeout(context.Background(), c.Timing.ExecTimeoutMs*time.Millisecond); defer cancel()
	run, ended := exec.CommandContext(ctx, program, c.Target.Name), said{"succeeded", 200, ""}
	run.Env = append(os.Environ(), "HOMEOSTAT_ACTION_ID="+c.ID)
	if err := run.Run(); ctx.Err() != nil { ended = said{"unknown", 504, "took too long"} } else if err != nil { ended = said{"failed", 500, err.Error()} }
	keep(c.ID, ended); return ended
}
// outcome is the record that says how a command ended. Said twice, it has the same id (UUIDv5).
func outcome(c command, payload string, s said, signer ed25519.PrivateKey) *kgo.Record {
	attempt, at := fmt.Sprint(c.Attempt), time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	id := sha1.Sum([]byte(fmt.Sprintf("%soutcome\x1f%d:%s\x1f%d:%s\x1f%d:%s", namespace, len(c.ID), c.ID, len(attempt), attempt, len(s.Status), s.Status)))
	id[6], id[8] = id[6]&0x0f|0x50, id[8]&0x3f|0x80
	data := map[string]any{"action_id": c.ID, "incident_id": c.Incident, "attempt": c.Attempt, "status": s.Status, "code": s.Code, "retryable": false,
		"executor": map[string]string{"id": "go", "version": "1"}, "at": at, "payload_sha256": payload}
	if s.Error != "" { data["error"] = s.Error }; record := kgo.Record{Topic: prefix + "outcomes", Key: []byte(c.Target.Key), Value: must(json.Marshal(data))}
	headers := map[string]string{"ce_id": fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]),
		"ce_type": "dev.homeostat.outcome." + s.Status + ".v1", "ce_specversion": "1.0", "ce_time": at, "ce_tenant": tenant, "ce_subject": c.Target.Key,
		"ce_source": "/homeostat/" + tenant + "/executor/go", "ce_correlationid": c.Incident, "ce_causationid": c.ID, "content-type": "application/json"}
	if signer != nil { sign(headers, string(record.Value), signer) }
	for name, value := range headers { record.Headers = append(record.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)}) }
	return &record
}
func main() {
	keys, ctx := map[string]ed25519.PublicKey{}, context.Background()
	for _, path := range must(filepath.Glob(filepath.Join(os.Args[1], "*.pem"))) { key := must(x509.ParsePKIXPublicKey(pemOf(path))).(ed25519.PublicKey); keys[keyID(key)] = key }
	var signer ed25519.PrivateKey
	if path := os.Getenv("EXECUTOR_KEY_FILE"); path != "" { signer = must(x509.ParsePKCS8PrivateKey(pemOf(path))).(ed25519.PrivateKey) }
	client := must(kgo.NewClient(kgo.SeedBrokers(cmp.Or(os.Getenv("KAFKA_BOOTSTRAP"), "127.0.0.1:9092")),
		kgo.ConsumerGroup(prefix+"executor-go"), kgo.ConsumeTopics(prefix+"actions"), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted())))
	for { for _, record := range client.PollFetches(ctx).Records() {
		c, headers := command{}, map[string]string{}
		for _, header := range record.Headers { headers[header.Key] = string(header.Value) }
		live := headers["ce_type"] == "dev.homeostat.action.requested.v1" && headers["ce_mode"] == "live"
		if live && json.Unmarshal(record.Value, &c) == nil {
			payload, ended := fmt.Sprintf("%x", sha(string(record.Value))), said{"rejected", 412, "unsigned, changed, or signed by a key that is not trusted"}
			if trusted(headers, string(record.Value), keys) { ended = answer(headers, string(record.Key), c, payload) }
			must(0, client.ProduceSync(ctx, outcome(c, payload, ended, signer)).FirstErr())
		}
		must(0, client.CommitRecords(ctx, record))
	} }
}
