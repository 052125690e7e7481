// The gateway's stream: server-sent events of an OpenAI-compatible answer, cut anywhere by the network.

/** Turns text pieces into the `data` of whole events. */
export class EventDecoder {
  #rest = ''
  #data: string[] = []

  push(text: string): string[] {
    const events: string[] = []
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop()!
    for (const raw of lines) {
      const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw
      if (line === '') {
        if (this.#data.length > 0) events.push(this.#data.join('\n'))
        this.#data = []
      } else if (line.startsWith('data:')) {
        this.#data.push(line.slice(line[5] === ' ' ? 6 : 5))
      }
    }
    return events
  }
}

export interface Piece {
  text: string
  /** Why the model ended, in the last piece. */
  finish: string | null
}

/** Reads one event; `null` for the end mark and for events without text. Throws what the gateway reports. */
export function readPiece(data: string): Piece | null {
  if (data === '[DONE]') return null
  const chunk = JSON.parse(data) as {
    error?: { message?: string }
    choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[]
  }
  if (chunk.error) throw new Error(chunk.error.message ?? 'The gateway reported an error.')
  const choice = chunk.choices?.[0]
  if (!choice) return null
  return { text: choice.delta?.content ?? '', finish: choice.finish_reason ?? null }
}

export interface Question {
  model: string
  messages: { role: 'user' | 'assistant'; content: string }[]
  max_tokens: number
  temperature: number
}

/** Asks the gateway and yields the answer as it is written. Aborting the signal ends it at once. */
export async function* ask(gateway: string, question: Question, signal: AbortSignal): AsyncGenerator<Piece> {
  const response = await fetch(`${gateway.replace(/\/+$/, '')}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    // A chat longer than the model's context loses its beginning instead of being refused.
    body: JSON.stringify({ ...question, stream: true, truncation: 'auto' }),
    signal,
  })
  if (!response.ok || response.body === null) throw new Error(await refusal(response))
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  const decoder = new EventDecoder()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      for (const data of decoder.push(value)) {
        const piece = readPiece(data)
        if (piece) yield piece
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

async function refusal(response: Response): Promise<string> {
  try {
    const body = (await response.json()) as { error?: { message?: string }; message?: string }
    return body.error?.message ?? body.message ?? `The gateway answered with status ${response.status}.`
  } catch {
    return `The gateway answered with status ${response.status}.`
  }
}
