// crane, as its makers ship it: a second opinion on what is in a registry.
package main

import (
	"os"

	"github.com/google/go-containerregistry/cmd/crane/cmd"
)

func main() {
	if cmd.Root.Execute() != nil {
		os.Exit(1)
	}
}
