// node clients.mjs URL KEY MODEL: one line of JSON for each check. See clients.py.
import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import OpenAI from "openai";

const [url, apiKey, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "Say hello." }];
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 });
const ollama = new Ollama({ host: url, headers: { Authorization: `Bearer ${apiKey}` } });

function expect(holds, what) {
  if (!holds) throw new Error(`unexpected: ${what}`);
}

async function gathered(stream, text) {
  let all = "";
  for await (const part of stream) all += text(part) ?? "";
  expect(all !== "", "an empty stream");
}

async function rejected(promise, status) {
  const error = await promise.then(() => null, (why) => why);
  expect((error?.status ?? error?.status_code) === status, error?.message);
}

const checks = {
  openai: {
    "stream while it loads": async () =>
      gathered(
        await openai.chat.completions.create({ model, messages, stream: true }),
        (part) => part.choices[0]?.delta.content,
      ),
    list: async () => expect((await openai.models.list()).data.some((one) => one.id === model), "the list"),
    chat: async () => {
      const answer = await openai.chat.completions.create({ model, messages });
      expect(answer.choices[0].message.content && answer._request_id, JSON.stringify(answer));
    },
    "no such model": async () => rejected(openai.chat.completions.create({ model: "nope", messages }), 404),
  },
  "@anthropic-ai/sdk": {
    messages: async () => {
      const answer = await anthropic.messages.create({ model, max_tokens: 16, messages });
      expect(answer.content[0].text, JSON.stringify(answer));
    },
    stream: async () =>
      gathered(
        await anthropic.messages.create({ model, max_tokens: 16, messages, stream: true }),
        (part) => part.delta?.text,
      ),
    "count tokens": async () =>
      expect((await anthropic.messages.countTokens({ model, messages })).input_tokens > 0, "no tokens"),
    "no such model": async () =>
      rejected(anthropic.messages.create({ model: "nope", max_tokens: 16, messages }), 404),
  },
  ollama: {
    list: async () => expect((await ollama.list()).models.some((one) => one.model === model), "the list"),
    show: async () => expect((await ollama.show({ model })).capabilities.includes("completion"), "no completion"),
    chat: async () => expect((await ollama.chat({ model, messages })).message.content, "an empty answer"),
    stream: async () =>
      gathered(await ollama.chat({ model, messages, stream: true }), (part) => part.message.content),
    generate: async () =>
      expect((await ollama.generate({ model, prompt: "Say hello." })).eval_count > 0, "no tokens"),
    "no such model": async () => rejected(ollama.chat({ model: "nope", messages }), 404),
  },
};

for (const [client, all] of Object.entries(checks)) {
  for (const [check, run] of Object.entries(all)) {
    const error = await run().then(() => null, (why) => String(why.message ?? why));
    console.log(JSON.stringify({ client, check, error }));
  }
}
