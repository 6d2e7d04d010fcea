// The ring of golang/groupcache, timed for `cargo bench --bench ring -- --go`: prints nanoseconds of one look-up among
// the first hundred of the peers, and of building the ring of all.
package main

import (
	"fmt"
	"time"

	"github.com/golang/groupcache/consistenthash"
)

// As in golang/groupcache's HTTPPool.
const replicas = 50

func peers(count int) []string {
	urls := make([]string, count)
	for number := range urls {
		urls[number] = fmt.Sprintf("http://cache-%03d.internal:8082", number)
	}
	return urls
}

func main() {
	keys := make([]string, 4096)
	for number := range keys {
		keys[number] = fmt.Sprintf("photos/%d.jpg?w=200", number)
	}
	ring := consistenthash.New(replicas, nil)
	ring.Add(peers(100)...)
	const lookups = 2_000_000
	owners := 0
	begun := time.Now()
	for number := 0; number < lookups; number++ {
		owners += len(ring.Get(keys[number%len(keys)]))
	}
	lookup := time.Since(begun).Nanoseconds() / lookups

	all := peers(1000)
	const builds = 20
	begun = time.Now()
	for number := 0; number < builds; number++ {
		built := consistenthash.New(replicas, nil)
		built.Add(all...)
		owners += len(built.Get(keys[number]))
	}
	fmt.Println(lookup, time.Since(begun).Nanoseconds()/builds, owners)
}
