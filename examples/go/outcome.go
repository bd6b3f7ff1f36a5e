package main

import (
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const namespace = "\x6f\x0d\x8b\x1e\x52\xc4\x5f\x7a\x9a\x3b\x1c\x64\x7e\x20\xd9\xf1"

// outcome is the record that says how a command ended. Said twice, it has the same id (UUIDv5).
func outcome(c command, payload string, said claim) *kgo.Record {
	name := "outcome"
	for _, part := range []string{c.ID, fmt.Sprint(c.Attempt), said.Status} {
		name += fmt.Sprintf("\x1f%d:%s", len(part), part)
	}
	id := sha1.Sum([]byte(namespace + name))
	id[6], id[8] = id[6]&0x0f|0x50, id[8]&0x3f|0x80
	at := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	data := map[string]any{"action_id": c.ID, "incident_id": c.Incident, "attempt": c.Attempt,
		"executor": map[string]string{"id": "go", "version": "1"}, "status": said.Status, "code": said.Code,
		"retryable": false, "at": at, "payload_sha256": payload}
	if said.Error != "" {
		data["error"] = said.Error
	}
	record := kgo.Record{Topic: prefix + "outcomes", Key: []byte(c.Target.Key), Value: must(json.Marshal(data))}
	for name, value := range map[string]string{"ce_specversion": "1.0", "ce_time": at, "ce_tenant": tenant,
		"ce_id":     fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]),
		"ce_type":   "dev.homeostat.outcome." + said.Status + ".v1",
		"ce_source": "/homeostat/" + tenant + "/executor/go", "ce_subject": c.Target.Key,
		"ce_correlationid": c.Incident, "ce_causationid": c.ID, "content-type": "application/json"} {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	return &record
}
