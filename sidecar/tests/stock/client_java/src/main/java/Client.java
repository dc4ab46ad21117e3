import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Arrays;
import java.util.concurrent.TimeUnit;
import synod.v1.LogOuterClass.AppendRequest;
import synod.v1.LogOuterClass.IdempotencyKey;
import synod.v1.LogOuterClass.SubscribeRequest;

/** A client as the grpc-java documentation shows it, with its default options: commands on stdin, answers on stdout. */
public final class Client {
  private static boolean details;

  private static synchronized void say(Object... words) {
    System.out.println(String.join(" ", Arrays.stream(words).map(Object::toString).toList()));
  }

  private static void append(LogGrpc.LogBlockingStub log, String text) {
    ByteString entry = ByteString.copyFromUtf8(text);
    AppendRequest request = AppendRequest.newBuilder().addEntries(entry)
        .setKey(IdempotencyKey.newBuilder().setKey(entry)).build();
    while (true) {
      try {
        say("appended", log.withDeadlineAfter(30, TimeUnit.SECONDS).append(request).getFirstIndex());
        return;
      } catch (StatusRuntimeException error) {
        Status.Code code = error.getStatus().getCode();
        // Under its key it may be tried again.
        if (code != Status.Code.UNAVAILABLE && code != Status.Code.DEADLINE_EXCEEDED) {
          say("failed", code, error.getStatus().getDescription());
          return;
        }
      }
    }
  }

  private static void refused(LogGrpc.LogBlockingStub log) throws Exception {
    AppendRequest request = AppendRequest.newBuilder().addEntries(ByteString.copyFromUtf8("never"))
        .setExpectedIndex(1_000_000).build();
    try {
      log.withDeadlineAfter(30, TimeUnit.SECONDS).append(request);
      say("appended");
    } catch (StatusRuntimeException error) {
      String reason = "";
      for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (details && detail.is(ErrorInfo.class)) {
          reason = detail.unpack(ErrorInfo.class).getReason();
        }
      }
      say("refused", error.getStatus().getCode(), reason);
    }
  }

  private static void subscribe(LogGrpc.LogBlockingStub log, long from) {
    // What carries no entries says something else of the stream.
    log.subscribe(SubscribeRequest.newBuilder().setFrom(from).build()).forEachRemaining(page ->
        page.getEntriesList().forEach(entry -> say("entry", entry.getIndex(), entry.getPayload().toStringUtf8())));
  }

  public static void main(String[] arguments) throws Exception {
    details = Arrays.asList(arguments).contains("--details");
    var channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
    var log = LogGrpc.newBlockingStub(channel);
    var lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      String[] words = line.split(" ", 2);
      switch (words[0]) {
        case "append" -> append(log, words[1]);
        case "refused" -> refused(log);
        default -> {
          var following = new Thread(() -> subscribe(log, Long.parseLong(words[1])));
          following.setDaemon(true);
          following.start();
        }
      }
    }
    System.exit(0);
  }
}
