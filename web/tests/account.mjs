// Join and Machines in a real browser against a running hub that takes BOINC clients.
//
//   node web/tests/account.mjs HUB_URL LOGIN_LINK EMAIL PASSWORD SCREENSHOT_FOLDER
//
// Needs: a link of `athome account login` for an account with a BOINC machine that earned credit and a native worker, and
// address and password of another account. CHROMIUM names the browser, /usr/bin/chromium if unset.

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'

import { accessible, DESK, fits, inBrowser, LONG_NAME, must, ok, PAGE_MS, recolour, report, until, withLongNames } from './page.mjs'

const [hub, link, email, password, out] = process.argv.slice(2)
if (!out) {
  console.error('usage: account.mjs HUB_URL LOGIN_LINK EMAIL PASSWORD SCREENSHOT_FOLDER')
  process.exit(2)
}
const origin = new URL(hub).origin
const figure = async (page) => Number((await page.getByTestId('cobblestones').textContent()).replaceAll(/[^0-9.]/g, ''))

async function looks(page, name) {
  await page.mouse.move(5, 5)
  await page.setViewportSize(DESK)
  await page.screenshot({ path: join(out, `${name}-light.png`), fullPage: true })
  await recolour(page, 'dark')
  await page.screenshot({ path: join(out, `${name}-dark.png`), fullPage: true })
  await accessible(page, name)
  await fits(page, name)
  await page.screenshot({ path: join(out, `${name}-phone.png`), fullPage: true })
  await page.setViewportSize(DESK)
}

async function checkSignedOut(page) {
  await page.goto(`${origin}/#/join`)
  await page.getByTestId('attach').waitFor({ timeout: PAGE_MS })
  const command = await page.getByTestId('attach').textContent()
  must(command.includes(`--project_attach ${origin}/ `), 'join: the command names this hub', command)
  await page.getByTestId('sign-in').waitFor()
  await looks(page, 'join')
  await page.getByRole('radio', { name: 'Windows' }).check()
  await page.getByTestId('no-platform').waitFor()
  ok('join: it says for which systems there is no application')
  await page.goto(`${origin}/#/machines`)
  await page.getByTestId('sign-in').waitFor()
  await looks(page, 'sign-in')
}

async function checkLink(page) {
  await page.goto(link)
  await page.getByTestId('account-name').waitFor({ timeout: PAGE_MS })
  must(!page.url().includes('link='), 'machines: the link’s token does not stay in the address', page.url())
  must((await figure(page)) > 0, 'machines: credit in BOINC’s figure', await figure(page))
  await page.getByTestId('host').waitFor()
  must((await page.getByTestId('host').count()) === 1, 'machines: the BOINC machine is there')
  const task = page.locator('[data-testid=task][data-state=merged]').first()
  await task.waitFor()
  ok(`machines: a merged task (${(await task.textContent()).replaceAll(/\s+/g, ' ').trim()})`)
  await page.getByTestId('native').waitFor()
  ok('machines: the native worker is there too')
  await looks(page, 'machines')
  // Another browser with the same link is not let in.
  const other = await page.context().browser().newContext()
  const second = await other.newPage()
  await second.goto(link)
  await second.getByRole('alert').waitFor({ timeout: PAGE_MS })
  must((await second.getByTestId('account-name').count()) === 0, 'machines: a link works once')
  await other.close()
}

async function checkKeys(page) {
  await page.goto(`${origin}/#/join`)
  await page.getByTestId('make-key').click()
  await until('join: a key', () => page.getByTestId('attach').textContent(), (text) => /d_[a-z2-7]{20,}/.test(text))
  ok('join: a device key in one click, filled into the command')
  await page.screenshot({ path: join(out, 'join-key.png'), fullPage: true })
  await page.goto(`${origin}/#/machines`)
  const keys = page.getByTestId('device-key')
  await keys.first().waitFor()
  const before = await keys.count()
  await keys.first().getByRole('button').click()
  await until('machines: a key less', () => keys.count(), (count) => count === before - 1)
  ok('machines: a key is taken back')
}

async function checkTeam(page) {
  await page.getByLabel('A new team').fill('Night shift')
  await page.getByRole('button', { name: 'Make the team' }).click()
  await page.getByRole('button', { name: 'Leave' }).waitFor()
  ok('machines: a team is founded')
  await page.getByRole('button', { name: 'Sign out' }).click()
  await page.getByTestId('sign-in').waitFor()
  ok('machines: signed out')
}

async function checkPassword(page) {
  await page.getByLabel('E-mail address').fill(email)
  await page.getByLabel('Password').fill(`${password}!`)
  await page.getByTestId('sign-in').getByRole('button', { name: 'Sign in' }).last().click()
  await page.getByRole('alert').waitFor()
  must((await page.getByTestId('account-name').count()) === 0, 'machines: a wrong password is refused', await page.getByRole('alert').textContent())
  await page.getByLabel('Password').fill(password)
  await page.getByTestId('sign-in').getByRole('button', { name: 'Sign in' }).last().click()
  await page.getByTestId('account-name').waitFor()
  ok('machines: signed in with the client’s address and password')
  await page.getByRole('button', { name: 'Join the team Night shift' }).click()
  await page.getByRole('button', { name: 'Leave' }).waitFor()
  ok('machines: a team is joined')
}

/** A link that signs in whoever this page is signed in as. */
async function linkOf(page) {
  const token = await page.evaluate(async () => (await (await fetch('/api/v1/account/links', { method: 'POST' })).json()).token)
  return { name: await page.getByTestId('account-name').textContent(), address: `${origin}/#/machines?link=${token}` }
}

/** A link of another account takes nobody's place unasked. */
async function checkQuestion(page, other) {
  const name = page.getByTestId('account-name')
  const own = await name.textContent()
  const question = page.getByTestId('link-question')
  await page.goto(other.address)
  await question.waitFor()
  must((await name.textContent()) === own, `machines: with a link of ${other.name}, ${own} is asked`, await name.textContent())
  must(!page.url().includes('link='), 'machines: nor does the token of a link that waits stay in the address', page.url())
  await accessible(page, 'question')
  await fits(page, 'question')
  await page.setViewportSize(DESK)
  await question.getByRole('button', { name: `Stay ${own}` }).click()
  await page.getByTestId('account-figures').waitFor()
  must((await name.textContent()) === own, `machines: ${own} stays`, await name.textContent())
  await page.goto(other.address)
  await question.getByRole('button', { name: 'Sign in by the link' }).click()
  await page.getByTestId('host').waitFor()
  must((await name.textContent()) === other.name, `machines: ${other.name} after the button alone`, await name.textContent())
}

async function checkLongNames(page) {
  await page.goto(`${origin}/#/join`)
  await page.getByText(`for the account ${LONG_NAME}`).waitFor()
  await fits(page, 'join with long names')
  await page.goto(`${origin}/#/machines`)
  await page.getByTestId('host').getByRole('heading', { name: LONG_NAME }).waitFor()
  await page.getByTestId('native').getByRole('link', { name: LONG_NAME }).waitFor()
  await page.getByTestId('device-key').first().waitFor()
  await fits(page, 'machines with long names')
  await page.goto(`${origin}/#/machines?link=of-nobody`)
  await page.getByRole('button', { name: `Stay ${LONG_NAME}` }).waitFor()
  await fits(page, 'question with long names')
  await page.setViewportSize(DESK)
}

await report(async () => {
  mkdirSync(out, { recursive: true })
  await inBrowser([origin], join(out, 'account-failure.png'), async (page) => {
    await checkSignedOut(page)
    await checkLink(page)
    await checkKeys(page)
    const alice = await linkOf(page)
    await checkTeam(page)
    await checkPassword(page)
    await checkQuestion(page, alice)
    await withLongNames(page, () => checkLongNames(page))
  })
})
