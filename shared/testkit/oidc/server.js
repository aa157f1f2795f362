// A certified OpenID Connect provider (npm `oidc-provider`) as the tests of sign-in need it: one client, one person, new
// keys with each start. Arguments: port, client id, client secret, the address to come back to, the one after signing out.
import { Provider } from 'oidc-provider';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';

const [port, clientId, clientSecret, redirect, signedOut] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;

const jwk = (type, options) => generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' });
const keys = [
  { ...jwk('rsa', { modulusLength: 2048 }), use: 'sig', alg: 'RS256' },
  { ...jwk('ec', { namedCurve: 'P-256' }), use: 'sig', alg: 'ES256' },
];

const people = {
  ann: { preferred_username: 'ann', email: 'ann@example.com', email_verified: true, roles: ['operator', 'chess-club'] },
};

const provider = new Provider(issuer, {
  clients: [{
    client_id: clientId,
    client_secret: clientSecret,
    redirect_uris: [redirect],
    post_logout_redirect_uris: [signedOut],
    response_types: ['code'],
    grant_types: ['authorization_code'],
  }],
  claims: { openid: ['sub', 'roles'], profile: ['preferred_username'], email: ['email', 'email_verified'] },
  // As most providers do: claims in the ID token, too.
  conformIdTokenClaims: false,
  cookies: { keys: [randomBytes(32).toString('hex')] },
  features: { devInteractions: { enabled: false }, rpInitiatedLogout: { enabled: true } },
  findAccount: (_, id) => people[id] && { accountId: id, claims: () => ({ sub: id, ...people[id] }) },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  jwks: { keys },
  // Nobody is asked whether this client may know.
  loadExistingGrant: async (ctx) => {
    const grant = new ctx.oidc.provider.Grant({
      accountId: ctx.oidc.session.accountId,
      clientId: ctx.oidc.client.clientId,
    });
    grant.addOIDCScope('openid profile email');
    grant.addOIDCClaims(['roles']);
    await grant.save();
    return grant;
  },
  pkce: { required: () => true },
});

const answer = provider.callback();

// The page to sign in at: a POST with the name.
createServer(async (request, response) => {
  try {
    if (!request.url.startsWith('/interaction/')) return answer(request, response);
    if (request.method !== 'POST') return response.end('<form method="post"><input name="login"></form>');
    let body = '';
    for await (const chunk of request) body += chunk;
    const login = { accountId: new URLSearchParams(body).get('login') };
    await provider.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false });
  } catch (error) {
    response.statusCode = 500;
    response.end(String(error));
  }
}).listen(Number(port), '127.0.0.1');
