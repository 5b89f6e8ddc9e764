// Package report is what the programs in Go share.
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	Unicode = "Grüße, 世界 🐘"
	Numeric = "12345678901234567890.0987654321"
)

var (
	Table = os.Getenv("DRIVER_TABLE")
	Big   = strings.Repeat("0123456789abcdef", 4*1024*1024/16)
)

type result struct {
	Check  string `json:"check"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Run prints the version of Debian's package (the sources tell none), does the checks and prints what came of each.
func Run(debianPackage string, checks map[string]func()) {
	version, err := exec.Command("dpkg-query", "-W", "-f", "${source:Upstream-Version}", debianPackage).Output()
	Must(err)
	say(map[string]string{"version": string(version)})
	for _, name := range strings.Fields(os.Getenv("DRIVER_CHECKS")) {
		if check, there := checks[name]; there {
			say(do(name, check))
		}
	}
}

func do(name string, check func()) result {
	detail := make(chan string, 1)
	go func() {
		defer func() {
			if trouble := recover(); trouble != nil {
				detail <- fmt.Sprintf("%.500v", trouble)
			} else {
				detail <- ""
			}
		}()
		check()
	}()
	select {
	case said := <-detail:
		return result{name, said == "", said}
	case <-time.After(30 * time.Second):
		return result{name, false, "not within 30 s"}
	}
}

func say(what interface{}) {
	var line bytes.Buffer
	Must(json.NewEncoder(&line).Encode(what))
	os.Stdout.Write(line.Bytes())
}

// Must panics with an error.
func Must(err error) {
	if err != nil {
		panic(err)
	}
}

// Equal panics unless both print alike.
func Equal(got, expected interface{}) {
	if one, other := fmt.Sprintf("%v", got), fmt.Sprintf("%v", expected); one != other {
		panic(fmt.Sprintf("got %.200s, expected %.200s", one, other))
	}
}

// Until asks every 50 ms, for 10 seconds at most.
func Until(question func() bool) {
	for deadline := time.Now().Add(10 * time.Second); !question(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			panic("not within 10 s")
		}
	}
}
