// A client as the grpc-go documentation shows it, with its default options: commands on stdin, answers on stdout.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	synod "stock/synodv1"
)

func call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

func appendOnce(log synod.LogClient, text string) {
	key := &synod.IdempotencyKey{Key: []byte(text)}
	request := &synod.AppendRequest{Entries: [][]byte{[]byte(text)}, Identity: &synod.AppendRequest_Key{Key: key}}
	for {
		ctx, cancel := call()
		answer, err := log.Append(ctx, request)
		cancel()
		switch code := status.Code(err); {
		case err == nil:
			fmt.Println("appended", answer.FirstIndex)
			return
		// Under its key it may be tried again.
		case code != codes.Unavailable && code != codes.DeadlineExceeded:
			fmt.Println("failed", err)
			return
		}
	}
}

func refused(log synod.LogClient) {
	expected := uint64(1_000_000)
	ctx, cancel := call()
	defer cancel()
	_, err := log.Append(ctx, &synod.AppendRequest{Entries: [][]byte{[]byte("never")}, ExpectedIndex: &expected})
	told, _ := status.FromError(err)
	reason := ""
	for _, detail := range told.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && slices.Contains(os.Args, "--details") {
			reason = info.Reason
		}
	}
	// The library says FailedPrecondition; the other clients say it as the specification does.
	name := strings.ToUpper(strings.ReplaceAll(told.Code().String(), "dP", "d_P"))
	fmt.Println("refused", name, reason)
}

func subscribe(log synod.LogClient, from uint64) {
	request := &synod.SubscribeRequest{Start: &synod.SubscribeRequest_From{From: from}}
	pages, err := log.Subscribe(context.Background(), request)
	for err == nil {
		var page *synod.SubscribeResponse
		// What carries no entries says something else of the stream.
		if page, err = pages.Recv(); err == nil {
			for _, entry := range page.Entries {
				fmt.Println("entry", entry.Index, string(entry.Payload))
			}
		}
	}
	fmt.Println("failed", err)
}

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	log := synod.NewLogClient(connection)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		command, rest, _ := strings.Cut(lines.Text(), " ")
		switch command {
		case "append":
			appendOnce(log, rest)
		case "refused":
			refused(log)
		default:
			from, _ := strconv.ParseUint(rest, 10, 64)
			go subscribe(log, from)
		}
	}
}
