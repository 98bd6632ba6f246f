// A seed in Go, with a heavy start: what `--image` is for.
package main

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"

	crypto "crypto/rand"

	"github.com/extism/go-pdk"
)

// What Pollen offers beyond Extism. Text and bytes travel as offsets in Extism's memory; 0 is a request that failed.

//go:wasmimport extism:host/user pollen_request
func pollenRequest(uri, input uint64) uint64

//go:wasmimport extism:host/user pollen_log
func pollenLog(level, message uint64)

// Built before the first function runs, in every instance: the start that `pln seed --image` takes once.
var (
	word  = regexp.MustCompile(`\p{L}[\p{L}\p{N}'-]*`)
	index = build()
)

func build() map[string]int {
	index := make(map[string]int)
	for number := range 4096 {
		index[fmt.Sprintf("word-%d", number)] = number
	}
	return index
}

//go:wasmexport greet
func greet() int32 {
	name := word.FindString(pdk.InputString())
	if name == "" {
		name = "world"
	}
	pdk.OutputString("Hello, " + name + ", from Go!")
	return 0
}

//go:wasmexport echo
func echo() int32 {
	pdk.Output(pdk.Input())
	return 0
}

// Looks a word of the index up: `word-0` to `word-4095`.
//
//go:wasmexport find
func find() int32 {
	name := strings.TrimSpace(pdk.InputString())
	number, ok := index[name]
	if !ok {
		pdk.SetErrorString(name + " is not in the index")
		return 1
	}
	pdk.OutputString(fmt.Sprint(number))
	return 0
}

// Asks the seed or the service that the input's first line names, and gives back what it answers to the rest.
//
//go:wasmexport ask
func ask() int32 {
	uri, input, _ := strings.Cut(pdk.InputString(), "\n")
	const info = 1
	to, what, note := pdk.AllocateString(uri), pdk.AllocateString(input), pdk.AllocateString("asking "+uri)
	pollenLog(info, note.Offset())
	answer := pollenRequest(to.Offset(), what.Offset())
	if answer == 0 {
		pdk.SetErrorString(uri + " gave no answer; the log of this node says why")
		return 1
	}
	memory := pdk.FindMemory(answer)
	pdk.Output(memory.ReadBytes())
	return 0
}

// A number of math/rand, and bytes of crypto/rand. An image freezes the first: it is the same in every call.
//
//go:wasmexport random
func random() int32 {
	bytes := make([]byte, 16)
	crypto.Read(bytes)
	pdk.OutputString(fmt.Sprintf("%d %s", rand.Uint64(), hex.EncodeToString(bytes)))
	return 0
}

func main() {}
