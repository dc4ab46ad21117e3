"""A client as the grpcio documentation shows it, with its default options: commands on stdin, answers on stdout."""

import sys
import threading

import grpc

from synod.v1 import log_pb2, log_pb2_grpc


def say(*words):
    print(*words, flush=True)


def append(log, text):
    key = log_pb2.IdempotencyKey(key=text.encode())
    while True:
        try:
            answer = log.Append(log_pb2.AppendRequest(entries=[text.encode()], key=key), timeout=30)
            return say("appended", answer.first_index)
        except grpc.RpcError as error:
            # Under its key it may be tried again.
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return say("failed", error.code().name, error.details())


def refused(log):
    request = log_pb2.AppendRequest(entries=[b"never"], expected_index=1_000_000)
    try:
        log.Append(request, timeout=30)
        say("appended")
    except grpc.RpcError as error:
        say("refused", error.code().name, reason(error))


def reason(error):
    """What grpc_status reads in the details of a refusal."""
    if "--details" not in sys.argv:
        return ""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


def subscribe(log, begin):
    for page in log.Subscribe(log_pb2.SubscribeRequest(**{"from": begin})):
        for entry in page.entries:
            say("entry", entry.index, entry.payload.decode())


def main():
    with grpc.insecure_channel(sys.argv[1]) as channel:
        log = log_pb2_grpc.LogStub(channel)
        for line in sys.stdin:
            command, _, rest = line.strip().partition(" ")
            if command == "append":
                append(log, rest)
            elif command == "refused":
                refused(log)
            else:
                threading.Thread(target=subscribe, args=(log, int(rest)), daemon=True).start()


main()
