"""The same client with grpc.aio."""

import asyncio
import sys

import grpc

from synod.v1 import log_pb2, log_pb2_grpc


def say(*words):
    print(*words, flush=True)


async def append(log, text):
    key = log_pb2.IdempotencyKey(key=text.encode())
    while True:
        try:
            answer = await log.Append(log_pb2.AppendRequest(entries=[text.encode()], key=key), timeout=30)
            return say("appended", answer.first_index)
        except grpc.aio.AioRpcError as error:
            # Under its key it may be tried again.
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return say("failed", error.code().name, error.details())


async def refused(log):
    request = log_pb2.AppendRequest(entries=[b"never"], expected_index=1_000_000)
    try:
        await log.Append(request, timeout=30)
        say("appended")
    except grpc.aio.AioRpcError as error:
        say("refused", error.code().name, reason(error))


def reason(error):
    """What grpc_status reads in the details of a refusal."""
    if "--details" not in sys.argv:
        return ""
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status()
    status.ParseFromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


async def subscribe(log, begin):
    async for page in log.Subscribe(log_pb2.SubscribeRequest(**{"from": begin})):
        for entry in page.entries:
            say("entry", entry.index, entry.payload.decode())


async def main():
    tasks = set()
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        log = log_pb2_grpc.LogStub(channel)
        while line := await asyncio.to_thread(sys.stdin.readline):
            command, _, rest = line.strip().partition(" ")
            if command == "append":
                await append(log, rest)
            elif command == "refused":
                await refused(log)
            else:
                tasks.add(asyncio.create_task(subscribe(log, int(rest))))


asyncio.run(main())
