package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	payloadType = "https://cloudevents.io/verifiability/dsse/v0.1"
	core        = "ce_id ce_source ce_specversion ce_type content-type ce_dataschema ce_subject ce_time"
	extensions  = "partitionkey,expirytime,correlationid,causationid,sequence,tenant,mode"
)

// trustedKeys reads every public key of a folder, by key id. Taking a file away ends the trust in its key.
func trustedKeys(folder string) map[string]ed25519.PublicKey {
	keys := map[string]ed25519.PublicKey{}
	for _, path := range must(filepath.Glob(filepath.Join(folder, "*.pem"))) {
		block, _ := pem.Decode(must(os.ReadFile(path)))
		key := must(x509.ParsePKIXPublicKey(block.Bytes)).(ed25519.PublicKey)
		keys[fmt.Sprintf("%.8x", sha256.Sum256(key))] = key
	}
	return keys
}

// unverified says why a record is not what a trusted key signed; it follows the CloudEvents extension "Verifiable
// CloudEvents with DSSE".
func unverified(headers map[string]string, data string, keys map[string]ed25519.PublicKey) string {
	var digests []byte
	add := func(part string) { digest := sha256.Sum256([]byte(part)); digests = append(digests, digest[:]...) }
	for _, name := range strings.Fields(core) {
		add(headers[name])
	}
	add(data)
	for _, name := range strings.Split(extensions, ",") {
		add(name)
		add(headers["ce_"+name])
	}
	payload := sha256.Sum256(digests)
	signed := fmt.Sprintf("DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload[:])
	material, _ := base64.StdEncoding.DecodeString(headers["ce_dssematerial"])
	var envelope struct{ Signatures []map[string]string }
	if json.Unmarshal(material, &envelope) != nil || headers["ce_signedextattrs"] != extensions {
		return "unsigned, or only in part"
	}
	for _, signature := range envelope.Signatures {
		key, trusted := keys[signature["keyid"]]
		sig, _ := base64.StdEncoding.DecodeString(signature["sig"])
		if trusted && !ed25519.Verify(key, []byte(signed), sig) {
			return "the signature does not fit: envelope or data were changed, or another key signed"
		}
		if trusted {
			return ""
		}
	}
	return "signed by a key that is not trusted"
}
