// What a chat keeps in this browser: messages, draft, settings.

export interface Message {
  id: number
  role: 'user' | 'assistant'
  text: string
  /** `streaming` only while it is being written. */
  state: 'done' | 'streaming' | 'stopped' | 'length' | 'failed'
  /** What went wrong, a sentence. */
  problem?: string
  model?: string
  /** Round of the checkpoint that wrote it. */
  round?: number
}

export interface Settings {
  temperature: number
  max_tokens: number
}

export interface Memory {
  messages: Message[]
  draft: string
  settings: Settings
}

const KEY = 'athome.chat'
const MESSAGES_MAX = 200
export const TEMPERATURE_MAX = 2
export const TOKENS_MAX = 1024
const DEFAULTS: Settings = { temperature: 0.8, max_tokens: 200 }

/** Reads what was kept; whatever is not as expected is left out. An answer cut by a reload is marked stopped. */
export function recall(stored: string | null): Memory {
  const empty: Memory = { messages: [], draft: '', settings: { ...DEFAULTS } }
  if (stored === null) return empty
  let kept: Partial<Memory>
  try {
    kept = JSON.parse(stored) as Partial<Memory>
  } catch {
    return empty
  }
  if (typeof kept !== 'object' || kept === null) return empty
  const messages = (Array.isArray(kept.messages) ? kept.messages : []).filter(
    (message) =>
      typeof message?.text === 'string' &&
      Number.isSafeInteger(message.id) &&
      (message.role === 'user' || message.role === 'assistant'),
  )
  return {
    messages: messages.map((message) => ({ ...message, state: message.state === 'streaming' ? 'stopped' : (message.state ?? 'done') })),
    draft: typeof kept.draft === 'string' ? kept.draft : '',
    settings: {
      temperature: within(kept.settings?.temperature, 0, TEMPERATURE_MAX, DEFAULTS.temperature),
      max_tokens: Math.round(within(kept.settings?.max_tokens, 1, TOKENS_MAX, DEFAULTS.max_tokens)),
    },
  }
}

/** What is stored: the newest messages only. */
export function keep(memory: Memory): string {
  return JSON.stringify({ ...memory, messages: memory.messages.slice(-MESSAGES_MAX) })
}

export function load(): Memory {
  return recall(localStorage.getItem(KEY))
}

export function save(memory: Memory): void {
  try {
    localStorage.setItem(KEY, keep(memory))
  } catch {
    // A full or forbidden store costs the memory of this chat, not the chat.
  }
}

function within(value: unknown, low: number, high: number, otherwise: number): number {
  return typeof value === 'number' && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise
}
