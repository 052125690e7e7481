// The account that this browser is signed in to, for all pages.

import type { Account } from '../api/client'
import { HubError } from '../api/client'
import { account as fetchAccount } from './calls'

/** Nothing while unknown, null where nobody is signed in. */
let known = $state.raw<Account | null | undefined>(undefined)

export const session = {
  get account(): Account | null | undefined {
    return known
  },
  set account(account: Account | null | undefined) {
    known = account
  },
  /** Asks the hub who is signed in; what was known stays if it does not answer. */
  async load(): Promise<void> {
    try {
      known = await fetchAccount()
    } catch (error) {
      if (error instanceof HubError && error.status === 0) throw error
      known = null
    }
  },
}
