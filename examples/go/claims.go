package main

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// claim is what is remembered of an action, in a file of its own; without a status it was begun and not finished.
type claim struct {
	Payload, Status, Error string
	Code                   int
}

func recall(id string) (known claim) {
	if bytes, err := os.ReadFile(filepath.Join(folder, filepath.Base(id))); err == nil {
		must(0, json.Unmarshal(bytes, &known))
	}
	return known
}

// keep is durable when it returns: beside its place first, then renamed.
func keep(id string, claimed claim) {
	path := filepath.Join(folder, filepath.Base(id))
	file := must(os.Create(path + ".tmp"))
	must(file.Write(must(json.Marshal(claimed))))
	must(0, file.Sync())
	must(0, os.Rename(path+".tmp", path))
}
