// What every browser test does: a check a line, axe in both colours, a phone's width, and no request to a foreign host.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { chromium } from 'playwright-core'

export const PAGE_MS = 30_000
export const PHONE = { width: 360, height: 760 }
export const DESK = { width: 1280, height: 1180 }

const axeSource = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

let passed = 0
export function ok(what) {
  passed += 1
  console.log(`ok - ${what}`)
}
export function must(condition, what, saw) {
  if (!condition) throw new Error(`${what}${saw === undefined ? '' : `; saw ${JSON.stringify(saw)}`}`)
  ok(what)
}

/** Waits until `read` gives something that `enough` accepts, and returns it. */
export async function until(what, read, enough, ms = PAGE_MS) {
  const end = Date.now() + ms
  let value
  for (;;) {
    value = await read()
    if (enough(value)) return value
    if (Date.now() > end) throw new Error(`${what}: not within ${ms} ms; last saw ${JSON.stringify(value)}`)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

/** Errors of scripts, refusals of the Content-Security-Policy, requests to foreign hosts. */
export function watch(page, allowed) {
  const troubles = []
  page.on('pageerror', (error) => troubles.push(`script error: ${error.stack}`))
  page.on('console', (message) => {
    if (/Content.Security.Policy/i.test(message.text())) troubles.push(message.text())
  })
  page.on('request', (request) => {
    const { protocol, origin: asked } = new URL(request.url())
    if (/^https?:$/.test(protocol) && !allowed.includes(asked)) troubles.push(`request to a foreign host: ${request.url()}`)
  })
  return troubles
}

/** Switches the colours and waits until they are painted. */
export async function recolour(page, colorScheme) {
  await page.emulateMedia({ colorScheme })
  await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))))
}

async function violations(page) {
  return page.evaluate(async () => {
    const { violations } = await window.axe.run(document)
    return violations
      .filter(({ impact }) => impact === 'serious' || impact === 'critical')
      .map(({ id, help, nodes }) => `${id} (${help}): ${nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(' | ')}`)
  })
}

export async function accessible(page, name) {
  for (const colorScheme of ['light', 'dark']) {
    await recolour(page, colorScheme)
    await page.evaluate(axeSource)
    let found = await violations(page)
    if (found.length > 0) {
      // A live page may have been looked at in the middle of a change: what is wrong is still wrong a moment later.
      await new Promise((resolve) => setTimeout(resolve, 500))
      found = await violations(page)
    }
    must(found.length === 0, `${name}: no serious accessibility violation in ${colorScheme}`, found)
  }
  await recolour(page, 'light')
}

export async function fits(page, name) {
  await page.setViewportSize(PHONE)
  const width = await page.evaluate(() => document.documentElement.scrollWidth)
  must(width <= PHONE.width, `${name}: no horizontal scrolling at ${PHONE.width} px`, width)
}

/** How a name begins that is as long as any may be, 64 letters, with no place to break it. */
export const LONG_NAME = 'W'.repeat(60)

/** Has everything that the hub names named so, while `checks` look. */
export async function withLongNames(page, checks) {
  let named = 0
  await page.route('**/v1/**', async (route) => {
    const request = route.request()
    if (request.method() !== 'GET' || request.resourceType() !== 'fetch') return route.fallback()
    const response = await route.fetch()
    const text = await response.text()
    // Names of tasks are told apart.
    const body = text.replaceAll(/"((?:worker_|run_)?name)":"(?:[^"\\]|\\.)*"/g, (_, key) => `"${key}":"${LONG_NAME}${1000 + (named++ % 9000)}"`)
    await route.fulfill({ response, body })
  })
  try {
    await checks()
  } finally {
    // What is on its way then is nobody's concern.
    await page.unrouteAll({ behavior: 'ignoreErrors' })
  }
}

/** Runs `checks` on a new page; CHROMIUM names the browser. A failure leaves a picture. */
export async function inBrowser(allowed, picture, checks) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run'],
  })
  try {
    const context = await browser.newContext({ viewport: DESK, colorScheme: 'light', reducedMotion: 'reduce' })
    const page = await context.newPage()
    page.setDefaultTimeout(PAGE_MS)
    const troubles = watch(page, allowed)
    try {
      await checks(page)
      must(troubles.length === 0, 'no script error, no policy violation, no foreign host', troubles)
    } catch (error) {
      await page.screenshot({ path: picture }).catch(() => {})
      if (troubles.length > 0) console.error(troubles.join('\n'))
      throw error
    }
  } finally {
    await browser.close()
  }
}

/** Runs a test to its last line: how many checks passed, and whether one failed. */
export async function report(main) {
  try {
    await main()
    console.log(`${passed} passed, 0 failed`)
  } catch (error) {
    console.error(`not ok - ${error.message}`)
    console.log(`${passed} passed, 1 failed`)
    process.exitCode = 1
  }
}
