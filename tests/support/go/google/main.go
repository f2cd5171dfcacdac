// The registry in memory of go-containerregistry, which knows the referrers API: google ADDRESS
package main

import (
	"io"
	"log"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	quiet := registry.Logger(log.New(io.Discard, "", 0))
	handler := registry.New(registry.WithReferrersSupport(true), quiet)
	log.Fatal(http.ListenAndServe(os.Args[1], handler))
}
