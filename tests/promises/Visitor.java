import java.io.FileInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** Visits a URL with both of Java's HTTP clients and prints what each was told: java Visitor.java URL CA.pem [NAME=KEYS.p12]... */
class Visitor {
    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        KeyStore trusted = KeyStore.getInstance("PKCS12");
        trusted.load(null, null);
        try (InputStream pem = new FileInputStream(arguments[1])) {
            trusted.setCertificateEntry("server", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(trusted);
        for (int i = 2; i < arguments.length; i++) {
            String[] named = arguments[i].split("=", 2);
            KeyManagerFactory keys = KeyManagerFactory.getInstance("SunX509");
            KeyStore own = KeyStore.getInstance("PKCS12");
            char[] password = "visitor".toCharArray();
            if (named[1].isEmpty()) {
                own.load(null, null);
            } else {
                try (InputStream file = new FileInputStream(named[1])) {
                    own.load(file, password);
                }
            }
            keys.init(own, password);
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);

            HttpsURLConnection connection = (HttpsURLConnection) new URL(url).openConnection();
            connection.setSSLSocketFactory(context.getSocketFactory());
            int status = connection.getResponseCode();
            InputStream body = status < 400 ? connection.getInputStream() : connection.getErrorStream();
            print("HttpsURLConnection", named[0], status, new String(body.readAllBytes()));

            HttpClient client = HttpClient.newBuilder().sslContext(context).version(HttpClient.Version.HTTP_1_1).build();
            HttpResponse<String> response =
                client.send(HttpRequest.newBuilder(URI.create(url)).build(), HttpResponse.BodyHandlers.ofString());
            print("HttpClient", named[0], response.statusCode(), response.body());
        }
    }

    private static void print(String client, String shown, int status, String body) {
        System.out.println(client + " " + shown + " " + status + " " + body.replaceAll("\\s+", " "));
    }
}
