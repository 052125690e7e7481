// What pages ask and tell the hub about an account. The session is a cookie that scripts cannot read.

import {
  api,
  done,
  take,
  type Account,
  type BoincProject,
  type DeviceKey,
  type Host,
  type MadeDeviceKey,
  type NewAccount,
  type Team,
} from '../api/client'

/** What BOINC clients are told of this hub; refused with 404 where it serves none. */
export const project = (): Promise<BoincProject> => take(api.GET('/api/v1/boinc'))

export const account = (): Promise<Account> => take(api.GET('/api/v1/account'))

/** Makes an account and signs in to it. */
export const createAccount = (body: NewAccount): Promise<Account> => take(api.POST('/api/v1/accounts', { body }))

export const signIn = (body: { email: string; password: string }): Promise<Account> => take(api.POST('/api/v1/sessions', { body }))

/** Signs in by a link's token, which works once. */
export const signInByLink = (token: string): Promise<Account> => take(api.POST('/api/v1/sessions', { body: { token } }))

export const signOut = (): Promise<void> => done(api.DELETE('/api/v1/sessions'))

export const hosts = (): Promise<Host[]> => take(api.GET('/api/v1/account/hosts'))

export const deviceKeys = (): Promise<DeviceKey[]> => take(api.GET('/api/v1/account/devices'))

export const makeDeviceKey = (name: string): Promise<MadeDeviceKey> => take(api.POST('/api/v1/account/devices', { body: { name } }))

export const revokeDeviceKey = (id: number): Promise<void> =>
  done(api.DELETE('/api/v1/account/devices/{id}', { params: { path: { id } } }))

export const teams = (): Promise<Team[]> => take(api.GET('/api/v1/teams'))

export const foundTeam = (name: string): Promise<Team> => take(api.POST('/api/v1/teams', { body: { name } }))

export const joinTeam = (id: number): Promise<void> => done(api.PUT('/api/v1/account/team', { body: { id } }))

export const leaveTeam = (): Promise<void> => done(api.DELETE('/api/v1/account/team'))

/** Says whether statistics sites may show the account. */
export const consent = (shows: boolean): Promise<void> =>
  done(api.PUT('/api/v1/account/statistics', { body: { shows_statistics: shows } }))
