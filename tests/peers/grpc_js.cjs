// @grpc/grpc-js, a client made at run time from our .proto:
//     NODE_PATH=.. node tests/peers/grpc_js.cjs HOST:PORT MODEL
"use strict";
const assert = require("node:assert");
const crypto = require("node:crypto");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, model] = process.argv.slice(2);
const proto = path.join(__dirname, "../../protos/inference/inference.proto");
const { inference } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true, longs: Number, defaults: true }));
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());
const deadline = () => ({ deadline: Date.now() + 120_000 });

const unary = (method, message) =>
  new Promise((resolve, reject) =>
    client[method](message, deadline(), (error, answer) => (error ? reject(error) : resolve(answer))));

const request = (name, steps) => ({
  model_name: name,
  id: "mine",
  inputs: [
    { name: "prompt", datatype: "BYTES", shape: [2], contents: { bytes_contents: [1, 2].map(() => Buffer.from("a red apple")) } },
    { name: "seed", datatype: "INT64", shape: [2], contents: { int64_contents: [7, 8] } },
    { name: "steps", datatype: "INT32", shape: [1], contents: { int_contents: [steps] } },
  ],
});

const pictures = (answer) => {
  const data = answer.raw_output_contents[answer.outputs.findIndex((output) => output.name === "image")] ?? Buffer.alloc(0);
  const files = [];
  for (let at = 0; at < data.length; at += 4 + data.readUInt32LE(at)) {
    files.push(crypto.createHash("sha256").update(data.subarray(at + 4, at + 4 + data.readUInt32LE(at))).digest("hex"));
  }
  return files;
};

const main = async () => {
  assert((await unary("ServerReady", {})).ready);
  const infer = await unary("ModelInfer", request(model, 3));
  assert.equal(infer.id, "mine");
  const refusal = await unary("ModelInfer", request(model, 999)).catch((error) => error);
  assert.equal(refusal.code, grpc.status.INVALID_ARGUMENT);
  const stream = client.ModelStreamInfer(deadline());
  stream.write(request(`${model}.stream`, 3));
  stream.end();
  const shown = {};
  let last = false;
  for await (const { error_message: error, infer_response: answer } of stream) {
    assert.equal(error, "");
    assert(!last);
    last = answer.parameters.triton_final_response.bool_param;
    const index = answer.raw_output_contents[answer.outputs.findIndex((output) => output.name === "index")].readInt32LE();
    for (const picture of pictures(answer)) shown[index] = picture;
  }
  assert(last);
  console.log(JSON.stringify({ infer: pictures(infer), stream: [shown[0], shown[1]], refusal: refusal.details }));
  client.close();
};

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
