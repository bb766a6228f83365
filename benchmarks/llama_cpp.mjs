// Serves a GGUF file with llama.cpp over the HTTP API of OpenAI, for benchmarks: the npm package node-llama-cpp, whose
// build uses what the processor has and gives the probabilities of a text's tokens.
//
//     node llama_cpp.mjs --modules DIR --model FILE.gguf [--lora ADAPTER.gguf] [--threads N]
//
// A request with "lora": [{"id": 0, "scale": 0}] is answered without the adapter. POST /likelihood, of {"rows": [[id]]},
// gives the NLL of each token of a row but the first, in nats. The chat template is the one of the file.

import { createServer } from 'node:http'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'

const { values: options } = parseArgs({
  options: {
    modules: { type: 'string' },
    model: { type: 'string' },
    lora: { type: 'string' },
    threads: { type: 'string', default: '1' },
  },
})
const library = pathToFileURL(resolve(options.modules, 'node-llama-cpp/dist/index.js'))
const jinja = pathToFileURL(resolve(options.modules, '@huggingface/jinja/dist/index.js'))
const { getLlama, LlamaLogLevel } = await import(library)
const { Template } = await import(jinja)

const threads = Number(options.threads)
const llama = await getLlama({ gpu: false, build: 'never', logLevel: LlamaLogLevel.error, maxThreads: threads })
const model = await llama.loadModel({ modelPath: resolve(options.model), gpuLayers: 0 })
const wanted = { contextSize: 1024, batchSize: 512, threads, sequences: 1 }
const plain = (await model.createContext(wanted)).getSequence()
const lora = options.lora && { adapters: [{ filePath: resolve(options.lora), scale: 1 }] }
const edited = lora ? (await model.createContext({ ...wanted, lora })).getSequence() : plain
const source = model.fileInfo.metadata.tokenizer?.chat_template
const template = source && new Template(source)
const name = 'served'

const sequenceOf = (body) => (body.lora?.every(({ scale }) => scale === 0) ? plain : edited)

async function complete(prompt, body) {
  const sequence = sequenceOf(body)
  await sequence.clearHistory()
  const added = []
  for await (const token of sequence.evaluate(model.tokenize(prompt, true), { temperature: 0 })) {
    if (model.isEogToken(token)) break
    added.push(token)
    if (added.length >= (body.max_tokens ?? 16)) break
  }
  return model.detokenize(added)
}

async function likelihood(row, body) {
  const sequence = sequenceOf(body)
  await sequence.clearHistory()
  const found = await sequence.controlledEvaluate(
    row.slice(0, -1).map((token) => [token, { generateNext: { probabilities: true } }]),
  )
  return found.map(({ next }, place) => -Math.log(next.probabilities.get(row[place + 1])))
}

const answers = {
  'GET /v1/models': () => ({ object: 'list', data: [{ id: name }] }),
  'GET /lora-adapters': () => (lora ? [{ id: 0, path: options.lora, scale: 1 }] : []),
  'POST /v1/completions': async (body) => ({ model: name, choices: [{ text: await complete(body.prompt, body) }] }),
  'POST /v1/chat/completions': async (body) => {
    const prompt = template.render({ messages: body.messages, add_generation_prompt: true })
    return { model: name, choices: [{ message: { role: 'assistant', content: await complete(prompt, body) } }] }
  },
  'POST /likelihood': async (body) => {
    const nlls = []
    for (const row of body.rows) nlls.push(await likelihood(row, body))
    return { nlls }
  },
}

let queue = Promise.resolve()
const server = createServer(async (request, response) => {
  let sent = ''
  for await (const part of request.setEncoding('utf8')) sent += part
  const own = answers[`${request.method} ${request.url}`]
  const turn = queue.then(() => (own ? own(sent ? JSON.parse(sent) : {}) : Promise.reject(new Error('not found'))))
  queue = turn.catch(() => {})
  const [status, found] = await turn.then((found) => [200, found]).catch((error) => [500, { error: `${error}` }])
  response.writeHead(status, { 'Content-Type': 'application/json' })
  response.end(JSON.stringify(found))
})
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}` })))
