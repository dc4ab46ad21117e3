import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.AbstractBlockingStub;
import io.grpc.stub.ClientCalls;
import java.util.Iterator;
import com.google.protobuf.Message;
import synod.v1.LogOuterClass.AppendRequest;
import synod.v1.LogOuterClass.AppendResponse;
import synod.v1.LogOuterClass.SubscribeRequest;
import synod.v1.LogOuterClass.SubscribeResponse;

/** What grpc-java's generator makes of the two methods: its program is not to be had from every registry. */
final class LogGrpc {
  private static final MethodDescriptor<AppendRequest, AppendResponse> APPEND = method(
      "Append", MethodType.UNARY, AppendRequest.getDefaultInstance(), AppendResponse.getDefaultInstance());
  private static final MethodDescriptor<SubscribeRequest, SubscribeResponse> SUBSCRIBE = method(
      "Subscribe", MethodType.SERVER_STREAMING, SubscribeRequest.getDefaultInstance(),
      SubscribeResponse.getDefaultInstance());

  private LogGrpc() {}

  private static <Q extends Message, A extends Message> MethodDescriptor<Q, A> method(
      String name, MethodType type, Q request, A answer) {
    return MethodDescriptor.<Q, A>newBuilder()
        .setType(type)
        .setFullMethodName(MethodDescriptor.generateFullMethodName("synod.v1.Log", name))
        .setRequestMarshaller(ProtoUtils.marshaller(request))
        .setResponseMarshaller(ProtoUtils.marshaller(answer))
        .build();
  }

  static LogBlockingStub newBlockingStub(Channel channel) {
    return new LogBlockingStub(channel, CallOptions.DEFAULT);
  }

  static final class LogBlockingStub extends AbstractBlockingStub<LogBlockingStub> {
    private LogBlockingStub(Channel channel, CallOptions options) {
      super(channel, options);
    }

    @Override protected LogBlockingStub build(Channel channel, CallOptions options) {
      return new LogBlockingStub(channel, options);
    }

    AppendResponse append(AppendRequest request) {
      return ClientCalls.blockingUnaryCall(getChannel(), APPEND, getCallOptions(), request);
    }

    Iterator<SubscribeResponse> subscribe(SubscribeRequest request) {
      return ClientCalls.blockingServerStreamingCall(getChannel(), SUBSCRIBE, getCallOptions(), request);
    }
  }
}
