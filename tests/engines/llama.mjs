// Serves a GGUF file with llama.cpp over the HTTP API of OpenAI, for tests: prebuilt in the npm package
// @fugood/llama.node, where llama-server itself would have to be built.
//
//     node llama.mjs --modules DIR --model FILE.gguf [--lora ADAPTER.gguf] [--name NAME] [--port N] [--threads N]
//                    [--cache f16|f32]
//
// DIR is the node_modules folder with the package. When the model is loaded it prints one line of JSON with its URL.
// A request with "lora": [{"id": 0, "scale": 0}] is answered without the adapter, as by llama-server. One context
// answers one request after another. Besides the API of OpenAI it has POST /likelihood, of {"text": …}.

import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { basename, resolve } from 'node:path'
import { parseArgs } from 'node:util'

const { values: options } = parseArgs({
  options: {
    modules: { type: 'string' },
    model: { type: 'string' },
    lora: { type: 'string' },
    name: { type: 'string' },
    port: { type: 'string', default: '0' },
    threads: { type: 'string', default: '1' },
    // What keys and values are kept in; f16 is what llama-server does.
    cache: { type: 'string', default: 'f16' },
  },
})
const { loadModel } = createRequire(resolve(options.modules, 'index.js'))('@fugood/llama.node')
const name = options.name ?? basename(options.model, '.gguf')
const adapters = options.lora ? [{ path: resolve(options.lora), scaled: 1.0 }] : []

let context, scale

async function load() {
  context = await loadModel({
    model: resolve(options.model),
    n_ctx: 2048,
    n_parallel: 1,
    n_threads: Number(options.threads),
    n_gpu_layers: 0,
    cache_type_k: options.cache,
    cache_type_v: options.cache,
    lora_list: adapters,
  })
  scale = 1.0
}

await load()
const template = context.getModelInfo().metadata['tokenizer.chat_template']

class Refused extends Error {
  constructor(status, message) {
    super(message)
    this.status = status
  }
}

function useAdapters(wanted) {
  if (!adapters.length || wanted === scale) return
  context.removeLoraAdapters()
  if (wanted !== 0) context.applyLoraAdapters(adapters.map(({ path }) => ({ path, scaled: wanted })))
  scale = wanted
}

// As llama-server reads the field: an adapter that the list does not name is off.
function scaleOf(body) {
  return body.lora ? Number(body.lora.find(({ id }) => id === 0)?.scale ?? 0) : 1.0
}

async function complete(prompt, body) {
  useAdapters(scaleOf(body))
  // An answer must not depend on what was asked before, nor on keys and values that the adapter changed.
  context.clearCache()
  const greedy = {
    prompt,
    n_predict: body.max_tokens ?? 16,
    // The most probable token, always: nothing may lower what was said already.
    temperature: 0,
    top_k: 1,
    penalty_repeat: 1.0,
    penalty_freq: 0,
    penalty_present: 0,
    seed: 0,
  }
  return (await run(greedy)).text
}

async function run(options) {
  for (let tries = 0; ; tries++) {
    try {
      return await context.completion(options)
    } catch (error) {
      // A race in the addon: an answer that is there too soon, as a tiny model's, leaves the context busy for good.
      if (!error.message.includes('in progress') || tries === 9) throw error
      const wanted = scale
      await load()
      useAdapters(wanted)
    }
  }
}

// What perplexity is made of: a text's tokens, and the NLL of each but the first after those before it, in nats. The
// package gives the probabilities of a next token only, so a text is read as often as it has tokens; what was read
// before is kept. An NLL is null where the text before the token, written out, would be read as other tokens, or where
// two tokens are written alike.
async function likelihood(text, body) {
  useAdapters(scaleOf(body))
  context.clearCache()
  const read = async (text) => Array.from((await context.tokenize(text)).tokens)
  const ids = await read(text)
  const nlls = Array(Math.max(ids.length - 1, 0)).fill(null)
  for (let next = 1; next < ids.length; next++) {
    const before = ids.slice(0, next)
    const prompt = await context.detokenize(before)
    if (String(await read(prompt)) !== String(before)) continue
    const all = { n_predict: 1, temperature: 1, top_k: 0, top_p: 1, min_p: 0, typ_p: 1, n_probs: 1 << 20, seed: 0 }
    const { completion_probabilities: found } = await run({ prompt, ...all })
    const token = await context.detokenize([ids[next]])
    const alike = found.at(-1).probs.filter(({ tok_str }) => tok_str === token)
    if (alike.length === 1) nlls[next - 1] = -Math.log(alike[0].prob)
  }
  return { tokens: ids, nlls }
}

const answers = {
  'GET /health': () => ({ status: 'ok' }),
  'GET /v1/models': () => ({ object: 'list', data: [{ id: name, object: 'model', owned_by: 'llama.cpp' }] }),
  'GET /lora-adapters': () => adapters.map(({ path }, id) => ({ id, path, scale: 1.0 })),
  'POST /likelihood': (body) => likelihood(body.text, body),
  'POST /v1/completions': async (body) => {
    if (typeof body.prompt !== 'string') throw new Refused(400, 'prompt: give a text')
    const text = await complete(body.prompt, body)
    return { object: 'text_completion', model: name, choices: [{ index: 0, text }] }
  },
  'POST /v1/chat/completions': async (body) => {
    if (!template) throw new Refused(400, 'this model has no chat template')
    if (!Array.isArray(body.messages)) throw new Refused(400, 'messages: give a list')
    const { prompt } = context.getFormattedChat(body.messages)
    const message = { role: 'assistant', content: await complete(prompt, body) }
    return { object: 'chat.completion', model: name, choices: [{ index: 0, message }] }
  },
}

async function answer(request) {
  const own = answers[`${request.method} ${request.url}`]
  if (!own) throw new Refused(404, `no such endpoint: ${request.method} ${request.url}`)
  let sent = ''
  for await (const part of request.setEncoding('utf8')) sent += part
  if (request.method === 'GET') return own()
  let body
  try {
    body = JSON.parse(sent)
  } catch {
    throw new Refused(400, 'the request is not JSON')
  }
  const turn = queue.then(() => own(body))
  queue = turn.catch(() => {})
  return turn
}

let queue = Promise.resolve()
const server = createServer(async (request, response) => {
  let status = 200
  const found = await answer(request).catch((error) => {
    status = error.status ?? 500
    console.error(error)
    return { error: { code: status, message: error.message } }
  })
  response.writeHead(status, { 'Content-Type': 'application/json' })
  response.end(JSON.stringify(found))
})
server.listen(Number(options.port), '127.0.0.1', () => {
  console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}` }))
})
