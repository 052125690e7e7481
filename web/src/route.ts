// Addresses of the pages: `#/`, `#/run/ID`, `#/run/ID/log?from=N`, `#/join`, `#/machines`, `#/chat`.

export type Route =
  | { page: 'runs' }
  | { page: 'run'; run: string }
  | { page: 'log'; run: string; from: number | null }
  | { page: 'join' }
  | { page: 'machines'; link: string | null }
  | { page: 'chat'; model: string | null }
  | { page: 'unknown'; address: string }

/** Reads a location's hash. */
export function parseRoute(hash: string): Route {
  const address = hash.replace(/^#/, '')
  const [path = '', query = ''] = address.split('?', 2)
  const parts = path.split('/').filter((part) => part !== '').map(decode)
  const parameters = new URLSearchParams(query)
  if (parts.length === 0) return { page: 'runs' }
  if (parts[0] === 'chat' && parts.length === 1) return { page: 'chat', model: parameters.get('model') }
  if (parts[0] === 'join' && parts.length === 1) return { page: 'join' }
  if (parts[0] === 'machines' && parts.length === 1) return { page: 'machines', link: parameters.get('link') }
  if (parts[0] === 'run' && parts[1] !== undefined) {
    if (parts.length === 2) return { page: 'run', run: parts[1] }
    if (parts.length === 3 && parts[2] === 'log') {
      return { page: 'log', run: parts[1], from: position(parameters.get('from')) }
    }
  }
  return { page: 'unknown', address }
}

export function runAddress(run: string): string {
  return `#/run/${encodeURIComponent(run)}`
}

export function logAddress(run: string, from?: number | null): string {
  const address = `${runAddress(run)}/log`
  return from === undefined || from === null ? address : `${address}?from=${from}`
}

function position(text: string | null): number | null {
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}
