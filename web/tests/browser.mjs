// The web app in a real browser against a running hub and gateway.
//
//   node web/tests/browser.mjs HUB_URL SCREENSHOT_FOLDER [--run NAME] [--rounds N] [--live-ms MS]
//
// Needs: a run with at least N merged rounds (default 2), one of them sampled, and workers that go on training it;
// a gateway that the hub names. CHROMIUM names the browser, /usr/bin/chromium if unset.
// Every check prints one line; the first that fails ends the test with exit status 1 and a picture of the page.

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { accessible, DESK, fits, inBrowser, LONG_NAME, must, ok, PAGE_MS, recolour, report, until, withLongNames } from './page.mjs'

const ANSWER_MS = 120_000
const STOP_MS_MAX = 1_000
const STOP_TRIES = 12

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { run: { type: 'string' }, rounds: { type: 'string', default: '2' }, 'live-ms': { type: 'string', default: '180000' } },
})
const [hub, out] = positionals
if (!hub || !out) {
  console.error('usage: browser.mjs HUB_URL SCREENSHOT_FOLDER [--run NAME] [--rounds N] [--live-ms MS]')
  process.exit(2)
}
const origin = new URL(hub).origin
const roundsMin = Number(values.rounds)
const liveMs = Number(values['live-ms'])

async function json(path) {
  const response = await fetch(`${origin}/api/v1${path}`)
  if (!response.ok) throw new Error(`${path} answered with status ${response.status}`)
  return response.json()
}

async function checkRuns(page, run) {
  await page.goto(`${origin}/`)
  await page.getByRole('link', { name: run.name }).waitFor({ timeout: PAGE_MS })
  ok('runs: the list names the run')
  await accessible(page, 'runs')
  await fits(page, 'runs')
  await page.setViewportSize(DESK)
  await page.getByRole('link', { name: run.name }).click()
}

async function checkRun(page, run) {
  const title = page.getByTestId('run-title')
  await title.waitFor({ timeout: PAGE_MS })
  must((await title.textContent()) === run.name, 'run: the title is the run’s name', await title.textContent())
  const round = async () => Number((await page.getByTestId('round-number').textContent()).replaceAll(',', ''))
  await until('run: round number', round, (value) => value >= roundsMin)
  ok(`run: at least ${roundsMin} rounds`)
  await until('run: timeline', () => page.getByTestId('timeline-row').count(), (rows) => rows >= Math.min(roundsMin, 12))
  ok('run: the timeline lists rounds')

  const chart = page.getByTestId('loss-chart')
  const points = async () => Number(await chart.getAttribute('data-points'))
  await until('run: loss points', points, (amount) => amount >= Math.min(2, roundsMin))
  const painted = await chart.locator('canvas').evaluate((canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
    let count = 0
    for (let at = 3; at < data.length; at += 4) if (data[at] > 0) count += 1
    return count
  })
  must(painted > 500, 'run: the loss chart is painted', painted)
  await page.locator('details', { has: page.getByTestId('loss-table') }).locator('summary').click()
  const rows = await page.getByTestId('loss-table').locator('tbody tr').count()
  must(rows >= Math.min(2, roundsMin), 'run: the table under the chart holds its points', rows)
  await page.locator('details', { has: page.getByTestId('loss-table') }).locator('summary').click()

  await page.getByTestId('worker-row').first().waitFor({ timeout: PAGE_MS })
  const workers = await json(`/runs/${run.id}/workers`)
  const listed = await page.getByTestId('worker-row').count()
  must(listed >= Math.min(workers.length, 50), 'run: every worker is listed', { listed, workers: workers.length })
  await page.getByTestId('sample').first().waitFor({ timeout: PAGE_MS })
  const sample = await until('run: a sample with text', () => page.getByTestId('sample-text').first().textContent(), (text) => text.trim() !== '')
  ok(`run: a sample is shown (${sample.trim().length} characters)`)

  await until('run: live', () => page.getByTestId('connection-state').getAttribute('data-state'), (state) => state === 'live')
  ok('run: connected')
  const before = await round()
  await page.evaluate(() => (window.notReloaded = true))
  const grown = await until('run: a live update', round, (value) => value > before, liveMs)
  must(await page.evaluate(() => window.notReloaded === true), `run: round ${before} became ${grown} without a reload`)
  await until('run: the new round in the timeline', () => page.getByTestId('timeline-row').first().textContent(), (text) => Number(/\d+/.exec(text.replaceAll(',', ''))?.[0]) >= grown)
  ok('run: the timeline shows the new round')

  await page.mouse.move(5, 5)
  await page.screenshot({ path: join(out, 'run-light.png') })
  await recolour(page, 'dark')
  await page.screenshot({ path: join(out, 'run-dark.png') })
  await accessible(page, 'run')
  // This very row: a newer round may take the first place at any moment.
  const first = await page.getByTestId('timeline-row').first().locator('button').first().elementHandle()
  await first.press('Enter')
  must((await first.getAttribute('aria-expanded')) === 'true', 'run: a round opens by keyboard')
  await accessible(page, 'run with an open round')
  await first.press('Enter')
  await fits(page, 'run')
  await page.screenshot({ path: join(out, 'run-phone.png'), fullPage: true })
  await page.setViewportSize(DESK)
}

async function checkLog(page, run) {
  const link = page.locator('[data-testid=sample] [data-testid=event-link]').first()
  const wanted = Number(/from=(\d+)/.exec(await link.getAttribute('href'))?.[1])
  await link.click()
  const entry = page.getByTestId('log-entry-wanted')
  await entry.waitFor({ timeout: PAGE_MS })
  const shown = JSON.parse(await entry.getByTestId('log-body').textContent())
  const { entries } = await json(`/runs/${run.id}/log?from=${wanted}&limit=1`)
  const same = JSON.stringify(shown) === JSON.stringify(entries[0].body)
  must(same && entries[0].index === wanted, `log: an event link opens entry ${wanted} (${entries[0].kind}) as the hub has it`, shown)
  must((await page.getByTestId('log-entry').count()) > 0, 'log: its neighbours are there')
  await accessible(page, 'log')
  await fits(page, 'log')
  await page.setViewportSize(DESK)
  await page.getByTestId('back-to-run').click()
  await page.getByTestId('run-title').waitFor({ timeout: PAGE_MS })
  ok('log: leads back to the run')
}

const last = (page) => page.getByTestId('chat-message').last()
const state = (page) => last(page).getAttribute('data-state')
const text = (page) => last(page).getByTestId('chat-text').textContent()
const ended = (value) => value === 'done' || value === 'length'

async function say(page, words) {
  await page.getByTestId('chat-input').fill(words)
  await until('chat: ready to send', () => page.getByTestId('chat-send').isEnabled(), Boolean)
  await page.getByTestId('chat-send').click()
}

async function checkChat(page) {
  await page.goto(`${origin}/#/chat`)
  const label = page.getByTestId('preview-label')
  await until('chat: the checkpoint’s round', () => label.textContent(), (shown) => /round \d/.test(shown))
  must(/research preview/.test(await label.textContent()), 'chat: labelled research preview, with its round', await label.textContent())

  await say(page, 'My fellow citizens,')
  await until('chat: an answer', () => state(page), ended, ANSWER_MS)
  const answer = await text(page)
  must(answer.trim() !== '', `chat: streams an answer (${answer.length} characters)`)

  await checkStop(page)

  const messages = await page.getByTestId('chat-message').count()
  await page.getByTestId('chat-regenerate').click()
  await until('chat: the answer anew', () => state(page), ended, ANSWER_MS)
  must((await page.getByTestId('chat-message').count()) === messages && (await text(page)).trim() !== '', 'chat: regenerate replaces the last answer')

  await page.getByTestId('chat-input').fill('a draft that')
  const kept = await text(page)
  await page.reload()
  await until('chat: messages after a reload', () => page.getByTestId('chat-message').count(), (count) => count === messages)
  must((await text(page)).trim() === kept.trim(), 'chat: a reload keeps the answers')
  must((await page.getByTestId('chat-input').inputValue()) === 'a draft that', 'chat: a reload keeps the draft')
  await page.getByTestId('chat-input').fill('')
  await until('chat: the model’s round', () => label.textContent(), (shown) => /round \d/.test(shown))

  await accessible(page, 'chat')
  await page.screenshot({ path: join(out, 'chat-light.png') })
  await fits(page, 'chat')
  await page.screenshot({ path: join(out, 'chat-phone.png') })
}

/** Stops an answer that has begun; a model that ends by itself first is asked again. */
async function checkStop(page) {
  for (let at = 1; at <= STOP_TRIES; at += 1) {
    const dropped = page.waitForEvent('requestfailed', { predicate: (request) => request.url().endsWith('/v1/chat/completions'), timeout: ANSWER_MS })
    dropped.catch(() => {})
    const watching = page.evaluate(stopOnceBegun)
    await say(page, 'And now, at greater length,')
    const { ms, state: after, length } = await watching
    if (after !== 'stopped') continue
    must(ms <= STOP_MS_MAX, `chat: stop takes effect within ${STOP_MS_MAX} ms (${ms.toFixed(1)} ms)`, ms)
    await dropped
    ok('chat: stop drops the request')
    const now = (await text(page)).length
    must(now === length, 'chat: nothing is written after stop', { now, length })
    return
  }
  throw new Error(`chat: each of ${STOP_TRIES} answers ended before it could be stopped`)
}

/** In the page: waits for a streaming answer with text, presses Stop, and measures until the page says stopped. */
function stopOnceBegun() {
  const known = document.querySelectorAll('[data-testid=chat-message]').length
  return new Promise((resolve) => {
    let pressed = null
    const look = () => {
      const messages = document.querySelectorAll('[data-testid=chat-message]')
      const message = messages[messages.length - 1]
      if (messages.length < known + 2) return
      const text = message.querySelector('[data-testid=chat-text]').textContent
      if (message.dataset.state !== 'streaming') {
        observer.disconnect()
        resolve({ ms: pressed === null ? 0 : performance.now() - pressed, state: pressed === null ? 'ended' : message.dataset.state, length: text.length })
      } else if (pressed === null && text.trim() !== '' && text !== 'writing…') {
        pressed = performance.now()
        document.querySelector('[data-testid=chat-stop]').click()
      }
    }
    const observer = new MutationObserver(look)
    observer.observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true })
  })
}

async function checkLongNames(page, run) {
  await page.goto(`${origin}/#/`)
  await page.getByRole('link', { name: LONG_NAME }).first().waitFor({ timeout: PAGE_MS })
  await fits(page, 'runs with long names')
  await page.goto(`${origin}/#/run/${run.id}`)
  await page.getByTestId('run-title').filter({ hasText: LONG_NAME }).waitFor({ timeout: PAGE_MS })
  await page.getByTestId('worker-row').filter({ hasText: LONG_NAME }).first().waitFor()
  await page.getByTestId('timeline-row').first().locator('button').first().press('Enter')
  await fits(page, 'run with long names')
  await page.goto(`${origin}/#/run/${run.id}/log`)
  await page.getByTestId('back-to-run').filter({ hasText: LONG_NAME }).waitFor({ timeout: PAGE_MS })
  await page.getByTestId('log-entry').first().waitFor()
  await fits(page, 'log with long names')
  await page.goto(`${origin}/#/chat`)
  await page.getByRole('button', { name: 'Clear' }).click()
  await page.getByTestId('chat-view').getByText(LONG_NAME).waitFor({ timeout: PAGE_MS })
  await fits(page, 'chat with long names')
  await page.setViewportSize(DESK)
}

async function main() {
  mkdirSync(out, { recursive: true })
  const info = await json('/hub')
  if (!info.gateway) throw new Error('the hub names no gateway')
  const runs = await json('/runs')
  const run = values.run ? runs.find(({ name, id }) => name === values.run || id === values.run) : runs[0]
  if (!run) throw new Error(`the hub has no run ${values.run ?? 'at all'}`)

  await inBrowser([origin, new URL(info.gateway).origin], join(out, 'failure.png'), async (page) => {
    await checkRuns(page, run)
    await checkRun(page, run)
    await checkLog(page, run)
    await checkChat(page)
    await withLongNames(page, () => checkLongNames(page, run))
  })
}

await report(main)
