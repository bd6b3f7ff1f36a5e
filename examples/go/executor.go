// An executor for Homeostat: verify, claim, act, report, commit.
// Usage: executor TRUSTED_KEYS_FOLDER PREFIX TENANT CLAIMS_FOLDER PROGRAM
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

var prefix, tenant, folder, program = os.Args[2], os.Args[3], os.Args[4], os.Args[5]

type command struct {
	ID       string `json:"action_id"`
	Incident string `json:"incident_id"`
	Attempt  int
	Action   struct{ Type string }
	Target   struct{ Key, Name, Tenant string }
	Timing   struct {
		StartDeadline time.Time     `json:"start_deadline"`
		ExecTimeoutMs time.Duration `json:"exec_timeout_ms"`
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// carryOut says how a verified command ended; what was said before is said again.
func carryOut(headers map[string]string, key string, c command, payload string) claim {
	switch known := recall(c.ID); {
	case known.Payload != "" && known.Payload != payload:
		return claim{Status: "rejected", Code: 422, Error: "the id was used before with other data"}
	case known.Status != "":
		return known
	case known.Payload != "":
		return claim{Status: "unknown", Code: 504, Error: "begun before this executor was restarted"}
	case key != c.Target.Key || headers["ce_subject"] != key || headers["ce_id"] != c.ID:
		return claim{Status: "rejected", Code: 412, Error: "record, envelope and data speak of different things"}
	case c.Target.Tenant != tenant || c.Action.Type != "restart" || c.Target.Name == "":
		return claim{Status: "rejected", Code: 403, Error: "not in this executor's allow-list"}
	case time.Now().Add(time.Second).After(c.Timing.StartDeadline):
		return claim{Status: "expired", Code: 410, Error: "must not start any more"}
	}
	keep(c.ID, claim{Payload: payload})
	ctx, cancel := context.WithTimeout(context.Background(), c.Timing.ExecTimeoutMs*time.Millisecond)
	defer cancel()
	run := exec.CommandContext(ctx, program, c.Target.Name)
	run.Env = append(os.Environ(), "HOMEOSTAT_ACTION_ID="+c.ID)
	done := claim{Payload: payload, Status: "succeeded", Code: 200}
	if err := run.Run(); ctx.Err() != nil {
		done = claim{Payload: payload, Status: "unknown", Code: 504, Error: "took too long"}
	} else if err != nil {
		done = claim{Payload: payload, Status: "failed", Code: 500, Error: err.Error()}
	}
	keep(c.ID, done)
	return done
}

func main() {
	keys := trustedKeys(os.Args[1])
	client := must(kgo.NewClient(kgo.SeedBrokers(cmp.Or(os.Getenv("KAFKA_BOOTSTRAP"), "127.0.0.1:9092")),
		kgo.ConsumerGroup(prefix+"executor-go"), kgo.ConsumeTopics(prefix+"actions"), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted())))
	for ctx := context.Background(); ; {
		for _, record := range client.PollFetches(ctx).Records() {
			headers := map[string]string{}
			for _, header := range record.Headers {
				headers[header.Key] = string(header.Value)
			}
			var c command
			live := headers["ce_type"] == "dev.homeostat.action.requested.v1" && headers["ce_mode"] == "live"
			if live && json.Unmarshal(record.Value, &c) == nil {
				payload := fmt.Sprintf("%x", sha256.Sum256(record.Value))
				said := claim{Status: "rejected", Code: 412, Error: unverified(headers, string(record.Value), keys)}
				if said.Error == "" {
					said = carryOut(headers, string(record.Key), c, payload)
				}
				must(0, client.ProduceSync(ctx, outcome(c, payload, said)).FirstErr())
			}
			must(0, client.CommitRecords(ctx, record))
		}
	}
}
