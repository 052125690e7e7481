// Numbers and times for people: always with a unit, always the same way.

const SECOND = 1000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const exact = new Intl.DateTimeFormat('en-GB', { dateStyle: 'medium', timeStyle: 'medium' })
const clock = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' })

export function count(value: number): string {
  return whole.format(value)
}

/** 950, 12.4 k, 1.25 M: three significant digits, powers of a thousand. */
export function short(value: number): string {
  return scaled(value, 1000, ['', 'k', 'M', 'G', 'T'])
}

/** 812 B, 1.4 MiB. */
export function bytes(value: number): string {
  return scaled(value, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB'])
}

function scaled(value: number, base: number, units: string[]): string {
  let size = Math.abs(value)
  let unit = 0
  while (size >= base - 0.5 && unit < units.length - 1) {
    size /= base
    unit += 1
  }
  const digits = unit === 0 ? (Number.isInteger(size) ? 0 : 1) : size < 10 ? 2 : size < 100 ? 1 : 0
  const text = `${value < 0 ? '−' : ''}${size.toFixed(digits)}`
  return units[unit] ? `${text} ${units[unit]}` : text
}

export function loss(value: number | null | undefined): string {
  return value === null || value === undefined ? '–' : value.toFixed(3)
}

/** Millionths of a credit as credits, three digits that count. */
export function credits(micro: number): string {
  const value = micro / 1e6
  if (value === 0) return '0'
  if (value >= 1000) return short(value)
  const decimals = value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : Math.min(6, 2 - Math.floor(Math.log10(value)))
  return value.toFixed(decimals)
}

/** BOINC's figure of credit: whole from ten on, as its clients show it. */
export function cobblestones(value: number): string {
  return value >= 10 || value === 0 ? count(Math.round(value)) : value >= 0.01 ? value.toFixed(2) : '< 0.01'
}

export function percent(part: number, all: number): string {
  if (all <= 0) return '0 %'
  const share = (100 * part) / all
  return `${share < 10 ? share.toFixed(1) : Math.floor(share)} %`
}

/** 840 ms, 9.4 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(ms: number): string {
  const span = Math.max(0, ms)
  if (span < SECOND) return `${Math.round(span)} ms`
  if (span < 59.95 * SECOND) return `${(span / SECOND).toFixed(1)} s`
  if (span < HOUR - SECOND / 2) return pair(span, MINUTE, 'min', SECOND, 's')
  if (span < DAY - MINUTE / 2) return pair(span, HOUR, 'h', MINUTE, 'min')
  return pair(span, DAY, 'd', HOUR, 'h')
}

function pair(span: number, large: number, largeUnit: string, small: number, smallUnit: string): string {
  const rounded = Math.round(span / small) * small
  const rest = Math.round((rounded % large) / small)
  return rest === 0 ? `${Math.floor(rounded / large)} ${largeUnit}` : `${Math.floor(rounded / large)} ${largeUnit} ${rest} ${smallUnit}`
}

/** "3 min ago", "in 8 s": one unit, whole. */
export function relative(then: number, now: number): string {
  const span = Math.abs(now - then)
  if (span < SECOND) return 'now'
  const text =
    span < MINUTE
      ? `${Math.floor(span / SECOND)} s`
      : span < HOUR
        ? `${Math.floor(span / MINUTE)} min`
        : span < DAY
          ? `${Math.floor(span / HOUR)} h`
          : `${Math.floor(span / DAY)} d`
  return then > now ? `in ${text}` : `${text} ago`
}

export function exactTime(ms: number): string {
  return exact.format(ms)
}

export function clockTime(ms: number): string {
  return clock.format(ms)
}

/** First characters of a hash or key: enough to tell apart, the whole stands in the title. */
export function brief(hex: string): string {
  return hex.length > 12 ? hex.slice(0, 10) : hex
}

export function plural(value: number, one: string, many: string): string {
  return `${count(value)} ${value === 1 ? one : many}`
}
