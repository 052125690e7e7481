// The account that this browser is signed in to, for all pages.

import type { Account } from '../api/client'
import { HubError } from '../api/client'
import { account as fetchAccount, signInByLink } from './calls'

/** How the hub says that nobody is signed in, and that nobody can be. */
const NOBODY = [401, 404]

/** Nothing while unknown, null where nobody is signed in. */
let known = $state.raw<Account | null | undefined>(undefined)

export const session = {
  get account(): Account | null | undefined {
    return known
  },
  set account(account: Account | null | undefined) {
    known = account
  },
  /** Asks the hub who is signed in; what was known stays if it does not say. */
  async load(): Promise<void> {
    try {
      known = await fetchAccount()
    } catch (error) {
      if (!(error instanceof HubError && NOBODY.includes(error.status))) throw error
      known = null
    }
  },
  /**
   * Signs in by a link's token, if nobody is signed in; gives whether it did. A link may come from anybody: whoever is signed in
   * is to be asked first.
   */
  async enter(token: string): Promise<boolean> {
    await session.load()
    if (known !== null) return false
    known = await signInByLink(token)
    return true
  },
}
