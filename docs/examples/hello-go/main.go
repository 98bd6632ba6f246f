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
