// A node of golang/groupcache for the tests: it shares a ring with nodes of groupcache-proxy.
//
// It loads a key by asking the origin for "/" + key, and ends when its standard input does.
//
//	GET /_groupcache/{group}/{key}   the library's own peer protocol
//	GET /get?key=K                   the value of K through the group: cache, owner, or origin
//	GET /owner?key=K                 the owner of K by the library's own ring
//	GET /loads?key=K                 how often this node asked the origin for K; without key: for all
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/golang/groupcache"
	"github.com/golang/groupcache/consistenthash"
)

var (
	mutex sync.Mutex
	loads = map[string]int{}
	total int
)

func main() {
	self := flag.String("self", "", "URL of this node, as all nodes know it")
	peers := flag.String("peers", "", "URLs of all nodes, separated by commas")
	group := flag.String("group", "thumbnails", "name of the group")
	origin := flag.String("origin", "", "URL of the origin, without the last slash")
	cacheBytes := flag.Int64("cache-bytes", 64<<20, "what the group may hold; 0 keeps nothing")
	flag.Parse()

	urls := strings.Split(*peers, ",")
	pool := groupcache.NewHTTPPool(*self)
	pool.Set(urls...)
	ring := consistenthash.New(50, nil)
	ring.Add(urls...)

	load := func(_ context.Context, key string, dest groupcache.Sink) error {
		mutex.Lock()
		loads[key]++
		total++
		mutex.Unlock()
		path, query, _ := strings.Cut(key, "?")
		target := (&url.URL{Path: "/" + path, RawQuery: query}).String()
		answer, err := http.Get(*origin + target)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("origin answered %s", answer.Status)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		return dest.SetBytes(body)
	}
	cache := groupcache.NewGroup(*group, *cacheBytes, groupcache.GetterFunc(load))

	http.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		var value []byte
		if err := cache.Get(r.Context(), r.URL.Query().Get("key"), groupcache.AllocatingByteSliceSink(&value)); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Write(value)
	})
	http.HandleFunc("/owner", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, ring.Get(r.URL.Query().Get("key")))
	})
	http.HandleFunc("/loads", func(w http.ResponseWriter, r *http.Request) {
		mutex.Lock()
		defer mutex.Unlock()
		if key, asked := r.URL.Query()["key"]; asked {
			fmt.Fprint(w, loads[key[0]])
			return
		}
		fmt.Fprint(w, total)
	})

	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	listen := strings.TrimPrefix(*self, "http://")
	if err := http.ListenAndServe(listen, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
